//! What a plan takes of memory: both passes gone through on a device that only counts.

use crate::attention::plan::RankPlan;
use crate::attention::run;
use crate::comm::dry::DryComm;
use crate::error::Result;
use crate::kernel::{DynKernel, KernelKind, KernelOn, kernel_object};
use crate::ops::attention::AttentionShape;
use crate::tensor::{DType, Device, DryRun, Float, Matrix};

impl RankPlan {
    /// Most bytes that a forward and a backward pass hold at a time on this rank, beyond what is there when they start:
    /// copies, messages, partial results, and what they leave. Just what [`Device::ledger`] counts; an op's scratch is
    /// not in it. Nothing is computed, but the steps are all gone through.
    ///
    /// # Errors
    /// If the programs cannot be run with this kernel.
    pub fn peak_bytes<K, D>(&self, shape: &AttentionShape) -> Result<(usize, usize)>
    where
        D: Device,
        K: KernelOn<DryRun<D::Elem>>,
    {
        self.rehearsed(kernel_object::<K, DryRun<D::Elem>>(), shape)
    }

    /// [`RankPlan::peak_bytes`] with a kernel and a storage type that are chosen at run time.
    ///
    /// # Errors
    /// If the programs cannot be run with this kernel.
    pub fn peak_bytes_of(&self, kernel: KernelKind, dtype: DType, shape: &AttentionShape) -> Result<(usize, usize)> {
        match dtype {
            DType::F64 => self.rehearsed::<f64>(kernel.object(), shape),
            // What is counted depends on the sizes of storage and accumulation type alone.
            DType::Bf16 | DType::F16 => self.rehearsed::<half::bf16>(kernel.object(), shape),
            _ => self.rehearsed::<f32>(kernel.object(), shape),
        }
    }

    /// Rehearses both passes on a device that only counts.
    fn rehearsed<T: Float>(
        &self,
        kernel: &'static dyn DynKernel<DryRun<T>>,
        shape: &AttentionShape,
    ) -> Result<(usize, usize)> {
        let (device, comm) = (DryRun::<T>::default(), DryComm::new(self.rank, self.placement().ranks()));
        let keys = self.keys.rows();
        let operands = [(self.stored, shape.q_width()), (keys, shape.k_width()), (keys, shape.v_width())];
        let qkv = operands.map(|(rows, width)| device.matrix::<T>(rows, width));
        let qkv = qkv.each_ref().map(Matrix::view);
        let held = device.ledger().mark();
        let (out, saved) = run::forward(&device, &comm, kernel, self, shape, qkv)?;
        let forward = device.ledger().peak() - held;
        let held = device.ledger().mark();
        let gradients = run::backward_apart(&device, &comm, self, shape, qkv, &saved, out.view())?;
        drop(gradients);
        Ok((forward, device.ledger().peak() - held))
    }
}
