//! Sets of tensors over the parameters of a list, each in one flat buffer.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::places::{Place, Stored};
use super::{ParameterId, ParameterList, ParameterSpec, StoredId};
use crate::error::{ModelError, Result};
use crate::ops::rows::MoveRows;
use crate::tensor::{Buffer, Device, Element, MatrixMut, MatrixRef, Storage};

/// Role of a [`ParameterSet`]: the copy that forward and backward read, in the storage type.
#[derive(Clone, Copy, Debug)]
pub enum WorkingRole {}
/// Role of a [`ParameterSet`]: the weights that the optimizer updates, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum MasterRole {}
/// Role of a [`ParameterSet`]: gradients, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum GradientRole {}
/// Role of a [`ParameterSet`]: running means of the optimizer, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum MomentRole {}

/// The working copy of the weights.
pub type Parameters<D> = ParameterSet<WorkingRole, <D as Device>::Elem, <D as Device>::Storage>;
/// The weights that the optimizer updates.
pub type Master<D> = ParameterSet<MasterRole, <D as Device>::Acc, <D as Device>::Storage>;
/// Gradients.
pub type Gradients<D> = ParameterSet<GradientRole, <D as Device>::Acc, <D as Device>::Storage>;
/// Running means of gradients or of their squares.
pub type Moments<D> = ParameterSet<MomentRole, <D as Device>::Acc, <D as Device>::Storage>;

/// A tensor for each parameter of a list, in its memory shape: parts of one flat buffer. `R` says what the set is for,
/// so that gradients cannot be passed for weights.
pub struct ParameterSet<R, T, S> {
    list: Arc<ParameterList>,
    flat: Buffer<T, S>,
    role: PhantomData<fn() -> R>,
}

impl<R, T: Element, S: Storage> ParameterSet<R, T, S> {
    /// Every element zero.
    pub fn zeros<D: Device<Storage = S>>(device: &D, list: &Arc<ParameterList>) -> Self {
        Self::of(device.zeros(list.elements()), list)
    }

    fn of(flat: Buffer<T, S>, list: &Arc<ParameterList>) -> Self {
        ParameterSet { flat, list: list.clone(), role: PhantomData }
    }

    /// From host memory in file order: `values(id, spec)` gives each parameter's elements, `[out, in]` for linear
    /// layers. Parameters are asked for in the list's order.
    ///
    /// # Errors
    /// Those of `values`, and another number of elements than the parameter has.
    pub fn from_host<D: Device<Storage = S>>(
        device: &D,
        list: &Arc<ParameterList>,
        mut values: impl FnMut(ParameterId, &ParameterSpec) -> Result<Vec<T>>,
    ) -> Result<Self> {
        let mut set = Self::of(device.empty(list.elements()), list);
        for (id, spec) in list.iter() {
            let host = values(id, spec)?;
            if host.len() != spec.len() {
                return Err(ModelError::Weights(format!(
                    "{}: {} elements, expected {} for shape {:?}",
                    spec.name,
                    host.len(),
                    spec.len(),
                    spec.shape
                ))
                .into());
            }
            // One copy beside the parameter at any time: the first is gone before the last is made.
            let memory = spec.to_memory(&host);
            drop(host);
            device.write(&memory, set.view_mut(id));
        }
        Ok(set)
    }

    /// One parameter in host memory, in file order.
    ///
    /// # Errors
    /// Those of [`Device::read`].
    pub fn to_host<D: Device<Storage = S>>(&self, device: &D, id: ParameterId) -> Result<Vec<T>> {
        Ok(self.list[id].to_file(&device.read(self.view(id))?))
    }

    /// The list that this is a set over.
    pub fn list(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// A parameter.
    pub fn view(&self, id: ParameterId) -> MatrixRef<'_, T, S> {
        let Place { stored, columns } = self.list.places.of(id.index());
        self.stored(*stored).column_range(columns.clone())
    }

    /// A parameter.
    pub fn view_mut(&mut self, id: ParameterId) -> MatrixMut<'_, T, S> {
        let Place { stored, columns } = self.list.places.of(id.index()).clone();
        self.stored_mut(stored).column_range(columns)
    }

    /// A matrix that holds one parameter or several side by side.
    pub fn stored(&self, id: StoredId) -> MatrixRef<'_, T, S> {
        let Stored { offset, rows, cols, .. } = *self.list.places.stored(id);
        MatrixRef::new(&self.flat, offset, rows, cols, cols)
    }

    /// A matrix that holds one parameter or several side by side.
    pub fn stored_mut(&mut self, id: StoredId) -> MatrixMut<'_, T, S> {
        let Stored { offset, rows, cols, .. } = *self.list.places.stored(id);
        MatrixMut::new(&mut self.flat, offset, rows, cols, cols)
    }

    /// All parameters, matrix by matrix.
    pub fn flat(&self) -> &Buffer<T, S> {
        &self.flat
    }

    /// All parameters, matrix by matrix.
    pub fn flat_mut(&mut self) -> &mut Buffer<T, S> {
        &mut self.flat
    }

    /// A copy.
    pub fn duplicate<D: Device<Storage = S>>(&self, device: &D) -> Self {
        Self::of(device.duplicate(&self.flat), &self.list)
    }
}

impl<T: Element, S: Storage> ParameterSet<MasterRole, T, S> {
    /// The working copy: every weight rounded to the storage type.
    pub fn working<D: MoveRows + Device<Acc = T, Storage = S>>(&self, device: &D) -> Parameters<D> {
        let mut working = Parameters::<D>::of(device.empty(self.flat.len()), &self.list);
        self.refresh(device, &mut working);
        working
    }

    /// Brings a working copy up to date.
    pub fn refresh<D: MoveRows + Device<Acc = T, Storage = S>>(&self, device: &D, working: &mut Parameters<D>) {
        device.to_elem(MatrixRef::of_buffer(&self.flat), MatrixMut::of_buffer(&mut working.flat));
    }
}

impl<R, T: Element, S> fmt::Debug for ParameterSet<R, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParameterSet<{}>[{} parameters]", T::DTYPE, self.list.len())
    }
}
