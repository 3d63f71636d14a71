//! The JAX grid of Transformer Engine (`transformer_engine.md` section 5.3): sequences that grow with the ranks.

use context_parallel::mask::Mask;
use rand::RngExt;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::problem::{Padding, ReferenceCase};
use super::scale::Scale;

/// Sequences, tokens of a chunk (a sequence has two per rank), query heads, features of a head.
const SHAPES: [(usize, usize, usize, usize); 3] = [(2, 128, 8, 128), (4, 256, 16, 64), (2, 128, 16, 256)];

/// Query heads per key/value head.
const GROUPS: [usize; 2] = [1, 8];

/// Segments of a packed sequence.
const SEGMENTS: usize = 5;

/// Windows of packed sequences: those of the ring, then that of striped all-gather. None is unlimited.
pub const WINDOWS: [Option<usize>; 3] = [None, Some(20), Some(5)];

/// The stripes of striped all-gather, and of the reordering test, which are not scaled.
pub const STRIPES: [usize; 2] = [64, 128];
pub const REORDERED_STRIPES: [usize; 2] = [1, 4];

/// Shapes of the reordering test: sequences, tokens of each, heads, features of a head.
pub const REORDERED: [[usize; 4]; 3] = [[3, 32, 8, 64], [4, 32, 12, 32], [1, 16, 1, 1]];

fn shapes(scale: Scale, ranks: usize) -> Vec<ReferenceCase> {
    let case = |(batch, chunk, heads, dim), group| {
        let heads: usize = heads;
        let seq = scale.tokens(chunk) * 2 * ranks;
        let (name, heads) = (
            format!("[{batch}, {chunk} * 2 * {ranks}, {heads} / {group}, {dim}]"),
            scale.heads((heads, heads / group)),
        );
        ReferenceCase {
            name,
            lengths: vec![seq; batch],
            padding: Padding::None,
            heads,
            dims: (dim, dim),
            mask: Mask::Full,
        }
    };
    SHAPES.into_iter().flat_map(|shape| GROUPS.map(|group| case(shape, group))).collect()
}

/// Dense sequences on this many ranks.
pub fn dense(scale: Scale, ranks: usize) -> Vec<ReferenceCase> {
    let masks = |case: ReferenceCase| [Mask::Causal, Mask::Full].map(|mask| ReferenceCase { mask, ..case.clone() });
    shapes(scale, ranks).into_iter().flat_map(masks).collect()
}

/// Packed sequences under a causal window: segments of random lengths, each with random padding at its end.
pub fn packed(scale: Scale, ranks: usize, window: Option<usize>) -> Vec<ReferenceCase> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(53);
    let segmented = |case: ReferenceCase| {
        let (mut valid, mut stored) = (Vec::new(), Vec::new());
        for seq in case.lengths {
            let mut ends: Vec<usize> = (1..SEGMENTS).map(|_| random.random_range(0..=seq)).collect();
            ends.push(seq);
            ends.sort_unstable();
            let mut start = 0;
            for end in ends {
                stored.push(end - start);
                valid.push(random.random_range(0..=end - start));
                start = end;
            }
        }
        let mask = window.map_or(Mask::Causal, |left| Mask::Window { left: Some(scale.window(left)), right: Some(0) });
        ReferenceCase {
            name: format!("{} window {window:?}", case.name),
            lengths: valid,
            padding: Padding::Stored(stored),
            mask,
            ..case
        }
    };
    shapes(scale, ranks).into_iter().map(segmented).collect()
}
