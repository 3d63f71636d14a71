//! A kernel as an object: its type ends here, and what runs it is compiled once per device.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::{PlanError, Result};
use crate::kernel::{Flash, Kernel, KernelOn, TileGradients, TileOperands, Unfused};
use crate::ops::attention::AttentionShape;
use crate::ops::{Attends, unfused};
use crate::tensor::{AccMut, AccRef};

/// What a kernel keeps of a tile for the backward pass: [`KernelOn::Saved`], shared between copies.
pub type Saved = Arc<dyn Any + Send + Sync>;

/// A [`Kernel`] without its type, on device `D`.
pub trait DynKernel<D: Attends>: fmt::Debug + Send + Sync {
    /// [`Kernel::NAME`].
    fn name(&self) -> &'static str;

    /// [`Kernel::ACROSS_SEQUENCES`].
    fn across_sequences(&self) -> bool;

    /// [`Kernel::NATURAL_KEYS`].
    fn natural_keys(&self) -> bool;

    /// Whether the backward pass needs what the forward pass saved of each tile ([`KernelOn::nothing_saved`]).
    fn saves(&self) -> bool;

    /// [`KernelOn::supports`].
    ///
    /// # Errors
    /// What the device does not compute.
    fn supports(&self, device: &D, shape: &AttentionShape) -> Result<()>;

    /// [`KernelOn::forward`]; something to keep if [`DynKernel::saves`].
    fn forward(&self, device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) -> Option<Saved>;

    /// [`KernelOn::backward`], with what the forward pass saved of the same tile.
    ///
    /// # Errors
    /// If the kernel saves something, and this is nothing or of another kernel.
    fn backward(
        &self,
        device: &D,
        tile: TileOperands<'_, D>,
        saved: Option<&Saved>,
        gradients: TileGradients<'_, D>,
    ) -> Result<()>;

    /// [`KernelOn::merge`].
    ///
    /// # Errors
    /// For kernels that keep no log-sum-exp.
    fn merge(
        &self,
        device: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()>;
}

struct Object<K>(PhantomData<K>);

/// Kernel `K` as an object.
pub fn kernel_object<K: KernelOn<D>, D: Attends>() -> &'static dyn DynKernel<D> {
    &Object::<K>(PhantomData)
}

impl<K: Kernel> fmt::Debug for Object<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(K::NAME)
    }
}

impl<K: KernelOn<D>, D: Attends> DynKernel<D> for Object<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn across_sequences(&self) -> bool {
        K::ACROSS_SEQUENCES
    }

    fn natural_keys(&self) -> bool {
        K::NATURAL_KEYS
    }

    fn saves(&self) -> bool {
        K::nothing_saved().is_none()
    }

    fn supports(&self, device: &D, shape: &AttentionShape) -> Result<()> {
        K::supports(device, shape)
    }

    fn forward(&self, device: &D, tile: TileOperands<'_, D>, out: AccMut<'_, D>, lse: AccMut<'_, D>) -> Option<Saved> {
        let saved = K::forward(device, tile, out, lse);
        match K::nothing_saved() {
            Some(_) => None,
            None => Some(Arc::new(saved)),
        }
    }

    fn backward(
        &self,
        device: &D,
        tile: TileOperands<'_, D>,
        saved: Option<&Saved>,
        gradients: TileGradients<'_, D>,
    ) -> Result<()> {
        let nothing = K::nothing_saved();
        let saved = nothing.as_ref().or_else(|| saved?.downcast_ref::<K::Saved>());
        let Some(saved) = saved else {
            let what = "a tile's backward pass without what the forward pass saved of it".to_string();
            return Err(PlanError::Unsound { strategy: K::NAME, what }.into());
        };
        K::backward(device, tile, saved, gradients);
        Ok(())
    }

    fn merge(
        &self,
        device: &D,
        shape: &AttentionShape,
        out: AccMut<'_, D>,
        lse: AccMut<'_, D>,
        part: (AccRef<'_, D>, AccRef<'_, D>),
    ) -> Result<()> {
        K::merge(device, shape, out, lse, part)
    }
}

/// The crate's kernels as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelKind {
    /// [`Flash`].
    Flash,
    /// [`Unfused`].
    Unfused,
}

impl KernelKind {
    /// [`Kernel::NAME`].
    pub fn name(self) -> &'static str {
        match self {
            KernelKind::Flash => Flash::NAME,
            KernelKind::Unfused => Unfused::NAME,
        }
    }

    /// The kernel of this name.
    pub fn named(name: &str) -> Option<Self> {
        [KernelKind::Flash, KernelKind::Unfused].into_iter().find(|kind| kind.name() == name)
    }

    /// The kernel as an object for device `D`.
    pub fn object<D: Attends + unfused::UnfusedAttention>(self) -> &'static dyn DynKernel<D> {
        match self {
            KernelKind::Flash => kernel_object::<Flash, D>(),
            KernelKind::Unfused => kernel_object::<Unfused, D>(),
        }
    }
}
