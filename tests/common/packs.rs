//! Batches for the dispatch solver: packs of random documents, and the mask cases of `magi.md` section 8.2.
#![allow(dead_code, reason = "each program uses its part")]

use std::ops::Range;

use context_parallel::layout::{Batch, Dense, Packed};
use context_parallel::mask::{Bands, Mask, Slice, SliceKind};
use context_parallel::plan::dispatch::Problem;
use rand::RngExt;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

/// Tokens per rank of the random packs.
pub const ROWS: usize = 8192;

/// What a problem borrows.
pub struct Pack {
    pub masks: Vec<(Bands, u64)>,
    pub documents: Vec<Range<usize>>,
    pub ranks: usize,
}

impl Pack {
    pub fn new(lengths: &[usize], mask: &Mask, ranks: usize) -> Self {
        let batch = Packed::from_lengths(lengths).expect("lengths of documents");
        let documents = (0..batch.documents()).map(|i| batch.document(i).stored_range()).collect();
        Pack { masks: vec![(mask.lower(&batch).expect("a mask"), 1)], documents, ranks }
    }

    pub fn problem(&self) -> Problem<'_> {
        Problem { masks: &self.masks, documents: &self.documents, ranks: self.ranks }
    }
}

/// Documents of log-normal lengths (median 1024, sigma 1.5, at least 16) that fill `ROWS` tokens per rank; the last
/// one is cut.
pub fn log_normal(ranks: usize, seed: u64) -> Vec<usize> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut left = ranks * ROWS;
    let mut lengths = Vec::new();
    while left > 0 {
        // Box and Muller's normal numbers.
        let (radius, angle) = (1.0 - random.random::<f64>(), random.random::<f64>());
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        let length = ((1024.0 * (1.5 * normal).exp()) as usize).max(16).min(left);
        lengths.push(length);
        left -= length;
    }
    lengths
}

/// A mask case: slices as queries, keys and type code (`magi.md` section 2.2).
pub struct Case {
    pub name: &'static str,
    pub tokens: usize,
    /// The nominal chunk.
    pub chunk: usize,
    /// Whether upstream pads it.
    pub padded: bool,
    pub slices: Vec<(Range<usize>, Range<usize>, u8)>,
}

impl Case {
    /// The case on `ranks` ranks. The whole batch counts as one document, as slices may go anywhere.
    pub fn pack(&self, ranks: usize) -> Pack {
        let slices = self
            .slices
            .iter()
            .map(|(q, k, code)| Slice {
                q: q.clone(),
                k: k.clone(),
                kind: [SliceKind::Full, SliceKind::Causal, SliceKind::InvCausal, SliceKind::BiCausal][*code as usize],
            })
            .collect();
        let bands = Mask::Slices(slices).lower(&Dense { batch: 1, seq: self.tokens }).expect("a mask");
        Pack { masks: vec![(bands, 1)], documents: vec![0..self.tokens; 1], ranks }
    }
}

/// Slices from `[q, q] [k, k]` lists and type codes; one code stands for all.
fn slices(q: &[[usize; 2]], k: &[[usize; 2]], codes: &[u8]) -> Vec<(Range<usize>, Range<usize>, u8)> {
    assert_eq!(q.len(), k.len());
    let code = |index: usize| if codes.len() == 1 { codes[0] } else { codes[index] };
    (0..q.len()).map(|i| (q[i][0]..q[i][1], k[i][0]..k[i][1], code(i))).collect()
}

/// Consecutive ranges between these ends.
fn consecutive(ends: &[usize]) -> Vec<[usize; 2]> {
    ends.windows(2).map(|pair| [pair[0], pair[1]]).collect()
}

/// The named cases of section 3.4, with the chunk and the padding rule of its table.
pub fn cases() -> Vec<Case> {
    let d2k: Vec<_> = (0..6).map(|i| [2048 * i, 2048 * (i + 1)]).collect();
    let case = |name, tokens, chunk, padded, slices| Case { name, tokens, chunk, padded, slices };
    let docs = consecutive(&[0, 128, 256, 384, 512, 640, 768, 1050]);
    let blocks = consecutive(&[0, 128, 256, 384, 512, 640, 768, 960]);
    let hundreds = consecutive(&[0, 150, 300, 450, 600, 750, 900]);
    vec![
        case("full_attn_14k", 14336, 512, true, slices(&[[0, 14336]], &[[0, 14336]], &[0])),
        case("varlen_full_attn_12k", 12288, 512, true, slices(&d2k, &d2k, &[0])),
        case(
            "varlen_block_causal_15k",
            15360,
            512,
            true,
            slices(
                &consecutive(&[0, 2048, 4096, 6144, 8192, 10240, 12288, 15360]),
                &[[0, 2048], [0, 4096], [0, 6144], [0, 8192], [8192, 10240], [8192, 12288], [12288, 15360]],
                &[0],
            ),
        ),
        case(
            "varlen_block_causal_12k_with_q_overlap",
            12288,
            512,
            true,
            slices(
                &[[0, 8192], [2048, 8192], [4096, 8192], [6144, 8192], [8192, 12288], [10240, 12288]],
                &[[0, 2048], [2048, 4096], [4096, 6144], [6144, 8192], [8192, 10240], [10240, 12288]],
                &[0],
            ),
        ),
        case(
            "bi_causal_12k_with_q_overlap",
            12288,
            512,
            true,
            slices(
                &[&d2k[..], &[[1000, 4000], [10000, 12000]]].concat(),
                &[
                    [0, 3072],
                    [0, 4096],
                    [0, 6144],
                    [6144, 12288],
                    [8192, 12288],
                    [9216, 12288],
                    [8000, 12000],
                    [0, 5000],
                ],
                &[3],
            ),
        ),
        case(
            "continuous_multi_masks_10k_with_q_overlap",
            10240,
            512,
            true,
            slices(
                &[
                    &[[0, 2048]; 4][..],
                    &[[2048, 4096], [3072, 5120], [5120, 7168], [6144, 8192]],
                    &[[8192, 10240]; 4],
                ]
                .concat(),
                &[
                    [0, 2048],
                    [2048, 4096],
                    [4096, 6144],
                    [6144, 10240],
                    [0, 2048],
                    [2048, 4096],
                    [0, 2048],
                    [2048, 4096],
                    [0, 2048],
                    [2048, 4096],
                    [4096, 6144],
                    [6144, 10240],
                ],
                &[2, 0, 1, 3, 2, 1, 2, 1, 2, 0, 1, 3],
            ),
        ),
        case("uneven_full_attn_10k", 10000, 512, false, slices(&[[0, 10000]], &[[0, 10000]], &[0])),
        case(
            "uneven_varlen_11k",
            11021,
            1111,
            false,
            slices(
                &consecutive(&[0, 2000, 4000, 6000, 8000, 9500, 11021]),
                &[[0, 2000], [0, 4000], [0, 6000], [0, 8000], [8000, 9500], [8000, 11021]],
                &[0, 1, 2, 3, 2, 1],
            ),
        ),
        case("sdpa_varlen_full_attn_1050", 1050, 5, true, slices(&docs, &docs, &[0])),
        case(
            "sdpa_varlen_block_causal_960",
            960,
            16,
            true,
            slices(
                &blocks,
                &[[0, 128], [0, 256], [0, 384], [0, 512], [512, 640], [512, 768], [768, 960]],
                &[0],
            ),
        ),
        case(
            "sdpa_share_question_1k",
            1024,
            128,
            true,
            slices(
                &[[0, 1024], [128, 256], [256, 512], [512, 1024]],
                &[[0, 128], [128, 256], [256, 512], [512, 1024]],
                &[0],
            ),
        ),
        case(
            "sdpa_uneven_varlen_900",
            900,
            63,
            false,
            slices(
                &hundreds,
                &[[0, 150], [0, 300], [0, 450], [0, 600], [600, 750], [600, 900]],
                &[1, 0, 2, 3, 2, 1],
            ),
        ),
    ]
}
