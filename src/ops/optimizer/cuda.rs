//! AdamW on GPUs.

use super::{AdamwOptions, AdamwState, Optimizer, StepNumbers};
use crate::tensor::cuda::{
    Argument, Arguments as _, BLOCK, Cuda, CudaFloat, CudaMemory, Dims, Geometry, Kernel, Suffix, suffix_of,
};
use crate::tensor::{AccBuffer, Buffer};

/// Stretches of a buffer whose sums are added in order, at most.
const CHUNKS: usize = 1024;

/// `AdamwOptions` of `kernels/optimizer.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawOptions([f64; 5]);

// SAFETY: five numbers, as in C.
unsafe impl Argument for RawOptions {}

/// A stretch is worth a block of threads.
fn chunks(elements: usize) -> usize {
    elements.div_ceil(BLOCK as usize).clamp(1, CHUNKS)
}

impl<T: CudaFloat> Cuda<T> {
    /// Adds up what stretches of a buffer gave, and writes it to a number of the step.
    fn total(&self, partials: u64, count: usize, numbers: &mut Buffer<f64, CudaMemory>, at: usize) {
        assert_eq!(numbers.len(), StepNumbers::LEN, "numbers of a step");
        let place = self.place();
        let target = numbers.storage_mut().writes(place) + (at * size_of::<f64>()) as u64;
        let sum = Kernel::SumF64.variant(Suffix::None, Dims::Any);
        (partials, count as i64, 0i32, target).launch(place, sum, Geometry::grid(1, 1, BLOCK, 0));
    }
}

impl<T: CudaFloat> Optimizer for Cuda<T> {
    fn sum_of_squares(&self, gradient: &AccBuffer<Self>, numbers: &mut Buffer<f64, CudaMemory>) {
        let place = self.place();
        let chunks = chunks(gradient.len());
        let mut partials = place.scratch::<f64>(chunks);
        let partials = partials.writes(place);
        let variant = Kernel::SumOfSquares.variant(suffix_of::<T>(), Dims::Any);
        let arguments = (gradient.storage().reads(place), gradient.len() as i64, partials);
        arguments.launch(place, variant, Geometry::blocks(chunks));
        self.total(partials, chunks, numbers, StepNumbers::GRADIENT);
    }

    fn adamw(
        &self,
        options: &AdamwOptions,
        decayed: usize,
        numbers: &mut Buffer<f64, CudaMemory>,
        state: AdamwState<'_, Self>,
    ) {
        let AdamwState { gradient, weights, mean, square, working } = state;
        let len = weights.len();
        assert_eq!([gradient.len(), mean.len(), square.len(), working.len()], [len; 4], "an element for every weight");
        let AdamwOptions { beta1, beta2, eps, weight_decay, clip } = *options;
        let place = self.place();
        let chunks = chunks(len);
        let mut partials = place.scratch::<f64>(chunks);
        let partials = partials.writes(place);
        let read = numbers.storage().reads(place);
        let [gradient, weights, mean, square] =
            [gradient, weights, mean, square].map(|buffer| buffer.storage_mut().writes(place));
        let working = working.storage_mut().writes(place);
        let variant = Kernel::Adamw.variant(suffix_of::<T>(), Dims::Any);
        let options = RawOptions([beta1, beta2, eps, weight_decay, clip]);
        let arguments = (options, decayed as i64, read, gradient, weights, mean, square, working, len as i64, partials);
        arguments.launch(place, variant, Geometry::blocks(chunks));
        self.total(partials, chunks, numbers, StepNumbers::WEIGHTS);
    }
}
