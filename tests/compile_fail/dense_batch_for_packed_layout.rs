//~ E0308
//~ mismatched types
//~ label: expected `Arc<Packed>`, found `Arc<Dense>`
// A packed layout has documents, not a batch of equal sequences.

use std::sync::Arc;

use context_parallel::layout::{Dense, Thd};
use context_parallel::order::Full;
use context_parallel::tensor::Matrix;

fn main() {
    let batch = Arc::new(Dense { batch: 2, seq: 4 });
    let _ = Full::<Thd, f32>::new(Matrix::from_slice(&[0.0; 8], 8, 1), batch);
}
