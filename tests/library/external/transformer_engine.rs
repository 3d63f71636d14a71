//! The PyTorch grid of Transformer Engine (`transformer_engine.md` section 5.1), rows without bias and softmax
//! variants.

use context_parallel::mask::Mask;
use rand::RngExt;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::problem::{Padding, ReferenceCase};
use super::scale::Scale;

/// A row. Rows of the reference that differ in bias, softmax or backend alone are one.
pub struct GridRow {
    /// What has this shape: `flash:` and `fused:` ids of the reference.
    pub ids: &'static str,
    seq: usize,
    heads: (usize, usize),
    dims: (usize, usize),
    mask: Mask,
}

/// Sequences of every row.
const BATCH: usize = 2;

const CAUSAL: Mask = Mask::Causal;
const FULL: Mask = Mask::Full;

/// A causal window.
const fn left(left: usize) -> Mask {
    Mask::Window { left: Some(left), right: Some(0) }
}

/// A window to both sides.
const fn both(width: usize) -> Mask {
    Mask::Window { left: Some(width), right: Some(width) }
}

const fn row(ids: &'static str, seq: usize, heads: (usize, usize), dims: (usize, usize), mask: Mask) -> GridRow {
    GridRow { ids, seq, heads, dims, mask }
}

/// Ids, sequence, query and key/value heads, features of query/key and of value heads, mask.
pub const ROWS: [GridRow; 20] = [
    row("flash:1_0 fused:1_0 fused:1_2", 4096, (12, 12), (128, 128), CAUSAL),
    row("flash:1_1 fused:1_1 fused:1_3 fused:1_4", 4096, (12, 12), (128, 128), FULL),
    row("flash:1_2 fused:1_5", 4096, (12, 12), (128, 128), left(512)),
    row("flash:1_3", 4096, (12, 12), (128, 128), both(512)),
    row("flash:2_0 fused:2_0", 4096, (32, 4), (128, 128), CAUSAL),
    row("flash:2_1 fused:2_5", 4096, (12, 2), (128, 128), FULL),
    row("flash:2_2 fused:2_1", 4096, (32, 32), (128, 128), left(128)),
    row("flash:2_3", 4096, (12, 2), (128, 128), both(512)),
    row("flash:3_0 fused:3_1", 4096, (128, 128), (192, 128), CAUSAL),
    row("flash:3_1", 4096, (12, 12), (192, 128), FULL),
    row("flash:3_2", 4096, (12, 12), (192, 128), left(512)),
    row("flash:3_3", 4096, (12, 12), (192, 128), both(512)),
    row("fused:2_2 fused:2_3 fused:2_4", 4096, (12, 2), (128, 128), CAUSAL),
    row("fused:2_6", 4096, (12, 2), (128, 128), left(512)),
    row("fused:3_0 fused:3_2", 4096, (12, 12), (128, 64), CAUSAL),
    row("fused:3_3 fused:3_4", 4096, (12, 12), (128, 64), FULL),
    row("fused:4_0 fused:4_1 fused:4_2", 4096, (64, 8), (64, 64), CAUSAL),
    row("fused:4_3", 4096, (64, 64), (64, 64), left(128)),
    row("fused:5_0", 1024, (16, 16), (256, 256), CAUSAL),
    row("fused:5_1", 1024, (16, 16), (256, 256), left(128)),
];

/// Rows of the reference by backend: `cp_1_*` to `cp_5_*`.
pub const IDS: [(&str, &[usize]); 2] = [("flash", &[4, 4, 4]), ("fused", &[6, 7, 5, 4, 2])];

impl GridRow {
    /// Sequences that are all as long.
    pub fn dense(&self, scale: Scale) -> ReferenceCase {
        self.case(scale, vec![scale.tokens(self.seq); BATCH], Padding::None)
    }

    /// Documents of any length up to the sequence's, padded to a multiple of twice the ranks.
    pub fn packed(&self, scale: Scale, random: &mut Xoshiro256PlusPlus) -> ReferenceCase {
        let longest = scale.tokens(self.seq);
        let lengths = (0..BATCH).map(|_| random.random_range(0..=longest)).collect();
        self.case(scale, lengths, Padding::ToRanks)
    }

    fn case(&self, scale: Scale, lengths: Vec<usize>, padding: Padding) -> ReferenceCase {
        let window = |width: Option<usize>| width.map(|width| scale.window(width));
        let mask = match &self.mask {
            Mask::Window { left, right } => Mask::Window { left: window(*left), right: window(*right) },
            mask => mask.clone(),
        };
        let (name, heads) = (format!("cp {}", self.ids), scale.heads(self.heads));
        ReferenceCase { name, lengths, padding, heads, dims: self.dims, mask }
    }
}

/// Where document lengths come from.
pub fn lengths() -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(51)
}
