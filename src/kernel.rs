//! Attention kernels as types, with what they can do.

mod object;

pub use object::{DynKernel, KernelKind, Saved, TileGradients, kernel_object};

use std::fmt;

use crate::error::{PlanError, Result};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::ops::unfused::Block;
use crate::plan::Piece;
use crate::tensor::{AccBuffer, AccMatrix, Device, ElemMatrix};

/// One tile's operands: queries, keys with values, and which cells are attended.
#[derive(Debug)]
pub struct TileOperands<'a, D: Device> {
    /// Heads and their sizes.
    pub shape: &'a AttentionShape,
    /// `[queries, q_width]`.
    pub q: &'a ElemMatrix<D>,
    /// `[keys, kv_width]`.
    pub kv: &'a ElemMatrix<D>,
    /// Attended cells.
    pub pieces: &'a [Piece],
    /// Rows of each sequence in both buffers; only for dense batches and buffers of all keys.
    pub blocks: &'a [Block],
}

/// How the scores of a tile are computed.
pub trait Kernel: Copy + Default + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Name on the command line.
    const NAME: &'static str;

    /// Whether a query of one sequence of a dense batch can attend keys of another.
    const ACROSS_SEQUENCES: bool = true;

    /// Whether it needs all keys in one tile, in natural order: row by row the tokens of the batch, as
    /// [`TileOperands::blocks`] has them.
    const NATURAL_KEYS: bool = false;

    /// What the backward pass needs besides output and log-sum-exp.
    type Saved<D: Device>: Send + Sync + 'static;

    /// What stands for [`Kernel::Saved`] if there is nothing in it, so that a backward pass may be cut into other tiles
    /// than its forward pass.
    fn nothing_saved<D: Device>() -> Option<Self::Saved<D>> {
        None
    }

    /// Writes `out [queries, out_width]`, and `lse [queries, q_heads]` if the kernel computes it.
    fn forward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        out: &mut AccMatrix<D>,
        lse: &mut AccMatrix<D>,
    ) -> Self::Saved<D>;

    /// Adds to `dq` and `dkv`.
    #[allow(clippy::too_many_arguments)]
    fn backward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        saved: &Self::Saved<D>,
        out: &AccMatrix<D>,
        lse: &AccMatrix<D>,
        delta: &AccMatrix<D>,
        dout: &ElemMatrix<D>,
        dq: &mut AccMatrix<D>,
        dkv: &mut AccMatrix<D>,
    );

    /// Merges a tile's result into the results before it.
    fn merge<D: Ops>(
        device: &D,
        shape: &AttentionShape,
        out: &mut AccMatrix<D>,
        lse: &mut AccMatrix<D>,
        part: (&AccMatrix<D>, &AccMatrix<D>),
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
    type Saved<D: Device> = ();

    fn nothing_saved<D: Device>() -> Option<()> {
        Some(())
    }

    fn forward<D: Ops>(device: &D, tile: TileOperands<'_, D>, out: &mut AccMatrix<D>, lse: &mut AccMatrix<D>) {
        device.attention(tile.shape, tile.q, tile.kv, tile.pieces, out, lse);
    }

    fn backward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        _saved: &(),
        _out: &AccMatrix<D>,
        lse: &AccMatrix<D>,
        delta: &AccMatrix<D>,
        dout: &ElemMatrix<D>,
        dq: &mut AccMatrix<D>,
        dkv: &mut AccMatrix<D>,
    ) {
        device.attention_backward(tile.shape, tile.q, tile.kv, tile.pieces, dout, lse, delta, dq, dkv);
    }

    fn merge<D: Ops>(
        device: &D,
        shape: &AttentionShape,
        out: &mut AccMatrix<D>,
        lse: &mut AccMatrix<D>,
        part: (&AccMatrix<D>, &AccMatrix<D>),
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
    type Saved<D: Device> = AccBuffer<D>;

    fn forward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        out: &mut AccMatrix<D>,
        _lse: &mut AccMatrix<D>,
    ) -> AccBuffer<D> {
        device.unfused(tile.shape, tile.q, tile.kv, tile.blocks, tile.pieces, out)
    }

    fn backward<D: Ops>(
        device: &D,
        tile: TileOperands<'_, D>,
        saved: &AccBuffer<D>,
        _out: &AccMatrix<D>,
        _lse: &AccMatrix<D>,
        _delta: &AccMatrix<D>,
        dout: &ElemMatrix<D>,
        dq: &mut AccMatrix<D>,
        dkv: &mut AccMatrix<D>,
    ) {
        device.unfused_backward(tile.shape, tile.q, tile.kv, tile.blocks, saved, dout, dq, dkv);
    }

    /// [`crate::strategy::RunsOn`] keeps every exchange that merges away from this kernel.
    fn merge<D: Ops>(
        _device: &D,
        _shape: &AttentionShape,
        _out: &mut AccMatrix<D>,
        _lse: &mut AccMatrix<D>,
        _part: (&AccMatrix<D>, &AccMatrix<D>),
    ) -> Result<()> {
        let what = "a program merges partial results of the kernel unfused, which keeps no log-sum-exp".to_string();
        Err(PlanError::Unsound { strategy: Self::NAME, what }.into())
    }
}
