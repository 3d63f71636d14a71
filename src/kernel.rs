//! Attention kernels as types, with what they can do.

mod object;

pub use object::{DynKernel, KernelKind, Saved, kernel_object};

use std::fmt;

use crate::error::{PlanError, Result};
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::ops::unfused;
use crate::plan::TileCells;
use crate::tensor::{AccBuffer, AccMut, AccRef, Device, ElemRef};

/// One tile's operands: queries, keys with values, and which cells are attended.
#[derive(Debug)]
pub struct TileOperands<'a, D: Attends> {
    /// Heads and their sizes.
    pub shape: &'a AttentionShape,
    /// `[queries, q_width]`.
    pub q: ElemRef<'a, D>,
    /// `[keys, kv_width]`.
    pub kv: ElemRef<'a, D>,
    /// Attended cells.
    pub cells: &'a TileCells,
    /// The same as the device takes it.
    pub tiles: &'a D::Tiles,
}

/// Operands of a tile's backward pass besides the tile itself, and where it adds.
#[derive(Debug)]
pub struct TileGradients<'a, D: Device> {
    /// Output of the forward pass, all tiles merged.
    pub out: AccRef<'a, D>,
    /// Its log-sum-exp.
    pub lse: AccRef<'a, D>,
    /// Product of output and its gradient, by row and head.
    pub delta: AccRef<'a, D>,
    /// Gradient of the output.
    pub dout: ElemRef<'a, D>,
    /// Gradient of the queries, added to.
    pub dq: AccMut<'a, D>,
    /// Gradient of keys and values, added to.
    pub dkv: AccMut<'a, D>,
}

/// A way to compute the scores of a tile: what it can do. How it does that on a device says [`KernelOn`].
pub trait Kernel: Copy + Default + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Name on the command line.
    const NAME: &'static str;

    /// Whether a query of one sequence of a dense batch can attend keys of another.
    const ACROSS_SEQUENCES: bool = true;

    /// Whether it needs all keys in one tile, in natural order: row by row the tokens of the batch, as
    /// [`TileCells::blocks`] has them.
    const NATURAL_KEYS: bool = false;
}

/// A kernel on devices `D`, which can do what it takes.
#[diagnostic::on_unimplemented(
    message = "the kernel `{Self}` does not run on the device `{D}`",
    label = "use `Flash`, or implement the ops of the kernel for the device"
)]
pub trait KernelOn<D: Attends>: Kernel {
    /// What the backward pass needs besides output and log-sum-exp.
    type Saved: Send + Sync + 'static;

    /// What stands for [`KernelOn::Saved`] if there is nothing in it, so that a backward pass may be cut into other
    /// tiles than its forward pass.
    fn nothing_saved() -> Option<Self::Saved> {
        None
    }

    /// Whether the device computes attention of this shape by this kernel.
    ///
    /// # Errors
    /// Those of [`AttentionShape::check`], and heads that are larger than the device computes.
    fn supports(device: &D, shape: &AttentionShape) -> Result<()> {
        let _ = device;
        Ok(shape.check()?)
    }

    /// Writes `out [queries, out_width]`, and `lse [queries, q_heads]` if the kernel computes it.
    fn forward(device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) -> Self::Saved;

    /// Adds to the gradients `dq` and `dkv`.
    fn backward(device: &D, tile: TileOperands<'_, D>, saved: &Self::Saved, gradients: TileGradients<'_, D>);

    /// Merges a tile's result into the results before it.
    ///
    /// # Errors
    /// For kernels that keep no log-sum-exp.
    fn merge(
        device: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()>;
}

/// Kernels that return the log-sum-exp of each row, so that partial results can be merged.
#[diagnostic::on_unimplemented(
    message = "the kernel `{Self}` keeps no log-sum-exp, so partial attention results cannot be merged",
    label = "use `Flash`"
)]
pub trait LogSumExp: Kernel {}

/// Tiled attention with log-sum-exp, over bands, on every layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flash;

/// Attention with materialised scores, for comparison: dense layouts only, and no log-sum-exp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Unfused;

impl LogSumExp for Flash {}

impl Kernel for Flash {
    const NAME: &'static str = "flash";
}

impl<D: Attends> KernelOn<D> for Flash {
    type Saved = ();

    fn nothing_saved() -> Option<()> {
        Some(())
    }

    fn supports(device: &D, shape: &AttentionShape) -> Result<()> {
        Ok(device.supports(shape)?)
    }

    fn forward(device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) {
        device.attention(tile.shape, tile.q, tile.kv, tile.tiles, out, lse);
    }

    fn backward(device: &D, tile: TileOperands<'_, D>, _saved: &(), gradients: TileGradients<'_, D>) {
        let TileOperands { shape, q, kv, tiles, .. } = tile;
        let TileGradients { lse, delta, dout, dq, dkv, .. } = gradients;
        device.attention_backward(shape, q, kv, tiles, dout, lse, delta, dq, dkv);
    }

    fn merge(
        device: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()> {
        device.attention_merge(shape, out, lse, part.0, part.1);
        Ok(())
    }
}

impl Kernel for Unfused {
    const NAME: &'static str = "unfused";
    /// Scores are materialised sequence by sequence.
    const ACROSS_SEQUENCES: bool = false;
    const NATURAL_KEYS: bool = true;
}

impl<D: Attends + unfused::UnfusedAttention> KernelOn<D> for Unfused {
    type Saved = AccBuffer<D>;

    fn forward(device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, _lse: AccMut<'_, D>) -> AccBuffer<D> {
        let TileOperands { shape, q, kv, tiles, cells } = tile;
        let mut probabilities = device.empty(unfused::cells(shape, &cells.blocks));
        device.unfused(shape, q, kv, tiles, out, &mut probabilities);
        probabilities
    }

    fn backward(device: &D, tile: TileOperands<'_, D>, saved: &AccBuffer<D>, gradients: TileGradients<'_, D>) {
        let TileOperands { shape, q, kv, tiles, .. } = tile;
        let TileGradients { dout, dq, dkv, .. } = gradients;
        device.unfused_backward(shape, q, kv, tiles, saved, dout, dq, dkv);
    }

    /// [`crate::strategy::RunsOn`] keeps every exchange that merges away from this kernel.
    fn merge(
        _device: &D,
        _shape: &AttentionShape,
        _out: AccMut<'_, D>,
        _lse: AccMut<'_, D>,
        _part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()> {
        let what = "a program merges partial results of the kernel unfused, which keeps no log-sum-exp".to_string();
        Err(PlanError::Unsound { strategy: Self::NAME, what }.into())
    }
}
