//! Batches for the dispatch solver: packs of random documents, and the mask cases of `magi.md` section 8.2.
#![allow(dead_code, reason = "each program uses its part")]

use std::ops::Range;

use context_parallel::layout::{Batch, Dense, Packed};
use context_parallel::mask::{Bands, Mask, Slice, SliceKind};
use context_parallel::solve::dispatch::Problem;
use rand::RngExt;
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

/// Tokens per rank of the random packs.
pub const ROWS: usize = 8192;

/// What a problem borrows.
#[derive(Debug)]
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
    /// The mask that the slices are.
    pub fn mask(&self) -> Mask {
        let kinds = [SliceKind::Full, SliceKind::Causal, SliceKind::InvCausal, SliceKind::BiCausal];
        let slice = |(q, k, code): &(Range<usize>, Range<usize>, u8)| Slice {
            q: q.clone(),
            k: k.clone(),
            kind: kinds[*code as usize],
        };
        Mask::Slices(self.slices.iter().map(slice).collect())
    }

    /// The case on `ranks` ranks. The whole batch counts as one document, as slices may go anywhere.
    pub fn pack(&self, ranks: usize) -> Pack {
        let bands = self.mask().lower(&Dense { batch: 1, seq: self.tokens }).expect("a mask");
        Pack { masks: vec![(bands, 1)], documents: vec![0..self.tokens; 1], ranks }
    }
}

/// Slices from `[q, q] [k, k]` lists and type codes; one code stands for all.
pub fn slices(q: &[[usize; 2]], k: &[[usize; 2]], codes: &[u8]) -> Vec<(Range<usize>, Range<usize>, u8)> {
    assert_eq!(q.len(), k.len());
    let code = |index: usize| if codes.len() == 1 { codes[0] } else { codes[index] };
    (0..q.len()).map(|i| (q[i][0]..q[i][1], k[i][0]..k[i][1], code(i))).collect()
}

/// Consecutive ranges between these ends.
pub fn consecutive(ends: &[usize]) -> Vec<[usize; 2]> {
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
                &[&[[0, 2048]; 4][..], &[[2048, 4096], [3072, 5120], [5120, 7168], [6144, 8192]], &[[8192, 10240]; 4]]
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
            slices(&blocks, &[[0, 128], [0, 256], [0, 384], [0, 512], [512, 640], [512, 768], [768, 960]], &[0]),
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
            slices(&hundreds, &[[0, 150], [0, 300], [0, 450], [0, 600], [600, 750], [600, 900]], &[1, 0, 2, 3, 2, 1]),
        ),
    ]
}

/// Ranges per rank.
type Parts = Vec<Vec<Range<usize>>>;

/// A row of [`appendix`].
type Row = (&'static str, Case, Vec<u128>, Vec<u128>, Parts, Parts);

/// `magi.md` appendix A.1: masks with areas of chunks, loads, tokens held and tokens received on 4 ranks. Loads are
/// empty where the areas of chunks are the loads.
pub fn appendix() -> Vec<Row> {
    let case = |name, tokens, chunk, q: &[[usize; 2]], k: &[[usize; 2]], codes: &[u8]| Case {
        name,
        tokens,
        chunk,
        padded: false,
        slices: slices(q, k, codes),
    };
    // "a-b c-d | e-f": ranges of each rank.
    let parts = |text: &str| -> Parts {
        let range = |text: &str| {
            let (start, end) = text.split_once('-').expect("a range");
            start.parse().expect("a start")..end.parse().expect("an end")
        };
        text.split('|').map(|part| part.split_whitespace().map(range).collect()).collect()
    };
    let row = |case: Case, areas: &[u128], loads: &[u128], host: &str, remote: &str| {
        (case.name, case, areas.to_vec(), loads.to_vec(), parts(host), parts(remote))
    };
    let tc2 = consecutive(&[0, 10, 16, 30, 43, 61, 64]);
    let tc3 = consecutive(&[0, 8, 24, 38, 57, 83, 92, 96]);
    let tc4 = consecutive(&[0, 30, 53, 74, 96]);
    let tc5 = consecutive(&[0, 2, 5, 8, 10, 14, 16, 22, 29, 32]);
    let tc6 = consecutive(&[0, 8, 22, 38, 51, 56, 64, 72, 89, 96]);
    vec![
        row(
            case("tc1", 16, 4, &consecutive(&[0, 1, 5, 12, 16]), &[[0, 1], [1, 4], [5, 10], [12, 13]], &[0]),
            &[10, 18, 20, 4],
            &[],
            "8-12 | 4-8 | 0-4 | 12-16",
            "5-8 | 1-4 8-10 | |",
        ),
        row(
            case("tc2", 64, 8, &tc2, &[[0, 11], [5, 18], [18, 32], [32, 45], [45, 64], [53, 64]], &[0, 1, 1, 1, 0, 0]),
            &[88, 85, 36, 72, 52, 131, 152, 128],
            &[188, 183, 200, 173],
            "16-24 48-56 | 32-48 | 24-32 56-64 | 0-16",
            "24-26 45-48 56-64 | 48-64 | 18-24 32-34 45-56 | 16-18",
        ),
        row(
            case("tc3", 96, 8, &tc3, &[[12, 20], [27, 43], [43, 48], [48, 67], [5, 74], [31, 86], [67, 96]], &[1]),
            &[36, 36, 100, 0, 18, 52, 116, 348, 436, 500, 449, 324],
            &[588, 585, 570, 672],
            "0-8 40-48 72-80 | 8-24 80-88 | 32-40 48-56 64-72 | 24-32 56-64 88-96",
            "8-40 48-71 | 5-8 24-80 | 5-32 40-48 56-64 | 5-24 32-56 64-88",
        ),
        row(
            case("tc4", 96, 8, &tc4, &[[0, 50], [61, 71], [34, 47], [57, 90]], &[1]),
            &[196, 260, 324, 285, 0, 15, 40, 6, 60, 112, 172, 236],
            &[424, 412, 438, 432],
            "16-24 48-56 64-72 | 24-32 40-48 72-80 | 8-16 56-64 80-88 | 0-8 32-40 88-96",
            "0-16 24-45 61-64 | 0-24 32-40 48-50 57-72 | 0-8 16-37 64-80 | 8-28 57-88",
        ),
        row(
            case(
                "tc5",
                32,
                8,
                &tc5,
                &[[0, 2], [2, 5], [5, 8], [8, 16], [8, 16], [8, 16], [4, 20], [17, 24], [19, 31]],
                &[1, 1, 1, 0, 1, 1, 1, 1, 0],
            ),
            &[15, 57, 84, 61],
            &[],
            "16-24 | 24-32 | 8-16 | 0-8",
            "4-16 | 17-24 | |",
        ),
        row(
            case(
                "tc6",
                96,
                8,
                &tc6,
                &[[15, 30], [56, 74], [25, 87], [7, 58], [71, 90], [62, 90], [71, 90], [3, 96], [7, 49]],
                &[0],
            ),
            &[120, 144, 232, 496, 474, 408, 248, 224, 152, 744, 744, 387],
            &[1112, 1120, 1035, 1106],
            "0-8 48-56 80-88 | 8-24 72-80 | 24-32 64-72 88-96 | 32-48 56-64",
            "8-48 56-80 88-96 | 3-8 24-72 80-96 | 3-24 32-64 72-88 | 7-32 48-56 64-90",
        ),
        row(
            case("tc7", 96, 8, &[[0, 96]], &[[48, 51]], &[1]),
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6],
            &[6, 0, 0, 0],
            "0-16 88-96 | 64-88 | 40-64 | 16-40",
            "48-51 | | |",
        ),
    ]
}
