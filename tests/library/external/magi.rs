//! The named mask cases of MagiAttention (`magi.md` section 8.2), and its two benchmark masks.

use super::problem::{Padding, ReferenceCase};
use super::scale::Scale;
use crate::packs::{self, consecutive, slices};

/// Query and key/value heads, and features of a head, of the reference's pipeline tests (section 8.1).
pub const HEADS: [(usize, usize); 2] = [(8, 8), (8, 2)];
pub const DIMS: [usize; 2] = [64, 128];

/// A named case.
pub struct Named {
    /// Its number in the reference.
    pub number: usize,
    mask: packs::Case,
    /// Ends of the documents that the mask does not cross.
    documents: Vec<usize>,
    /// What it runs with when scaled down: one choice of `HEADS` and `DIMS` per mask, so that the set has each.
    heads: (usize, usize),
    dim: usize,
}

/// Masks of section 8.2 that the dispatch solver's tests do not have.
pub fn others() -> Vec<packs::Case> {
    let case = |name, tokens, chunk, slices| packs::Case { name, tokens, chunk, padded: true, slices };
    let pieces = |(row, column): (usize, usize)| ([512 * row, 512 * (row + 1)], [1024 * column, 1024 * (column + 1)]);
    let (q, k): (Vec<_>, Vec<_>) = (0..16).flat_map(|row| (0..8).map(move |column| (row, column))).map(pieces).unzip();
    let blocks = consecutive(&[0, 128, 256, 384, 512, 640, 768, 840]);
    vec![
        case("full_mask_assembled_from_small_pieces_with_8k", 8192, 512, slices(&q, &k, &[0])),
        case("sdpa_full_attn_1k", 1024, 32, slices(&[[0, 1024]], &[[0, 1024]], &[0])),
        case(
            "sdpa_varlen_block_causal_840",
            840,
            4,
            slices(&blocks, &[[0, 128], [0, 256], [0, 384], [0, 512], [512, 640], [512, 768], [768, 840]], &[0]),
        ),
    ]
}

/// Cases 1 to 9 and 11.
pub fn cases() -> Vec<Named> {
    let mut masks: Vec<packs::Case> = packs::cases().into_iter().chain(others()).collect();
    let mut named = |number, name: &str, documents: &[usize], heads, dim| {
        let at = masks.iter().position(|mask| mask.name == name).expect("a mask of this name");
        Named { number, mask: masks.swap_remove(at), documents: documents.to_vec(), heads, dim }
    };
    let [eight, two] = HEADS;
    let documents: Vec<usize> = (1..=6).map(|i| 2048 * i).collect();
    let cases = vec![
        named(1, "full_attn_14k", &[14336], eight, 64),
        named(2, "varlen_full_attn_12k", &documents, eight, 128),
        named(3, "varlen_block_causal_15k", &[8192, 12288, 15360], two, 64),
        named(4, "varlen_block_causal_12k_with_q_overlap", &[8192, 12288], eight, 64),
        named(5, "bi_causal_12k_with_q_overlap", &[12288], eight, 128),
        named(6, "continuous_multi_masks_10k_with_q_overlap", &[10240], two, 64),
        named(7, "full_mask_assembled_from_small_pieces_with_8k", &[8192], eight, 64),
        named(8, "uneven_full_attn_10k", &[10000], eight, 64),
        named(9, "uneven_varlen_11k", &[8000, 11021], two, 128),
        named(11, "sdpa_full_attn_1k", &[1024], two, 64),
        named(11, "sdpa_varlen_full_attn_1050", &[128, 256, 384, 512, 640, 768, 1050], eight, 128),
        named(11, "sdpa_varlen_block_causal_960", &[512, 768, 960], two, 64),
        named(11, "sdpa_varlen_block_causal_840", &[512, 768, 840], eight, 64),
        named(11, "sdpa_share_question_1k", &[1024], two, 128),
        named(11, "sdpa_uneven_varlen_900", &[600, 900], eight, 64),
    ];
    assert!(masks.is_empty(), "masks without a case");
    cases
}

impl Named {
    /// At full size with all heads and dimensions, else with one of each.
    pub fn cases(&self, scale: Scale) -> Vec<ReferenceCase> {
        match scale == Scale::FULL {
            true => HEADS.iter().flat_map(|&heads| DIMS.map(|dim| self.case(scale, heads, dim))).collect(),
            false => vec![self.case(scale, self.heads, self.dim)],
        }
    }

    fn case(&self, scale: Scale, heads: (usize, usize), dim: usize) -> ReferenceCase {
        let range = |range: &std::ops::Range<usize>| scale.tokens(range.start)..scale.tokens(range.end);
        let slices = self.mask.slices.iter().map(|(q, k, code)| (range(q), range(k), *code)).collect();
        let mask = packs::Case { tokens: scale.tokens(self.mask.tokens), slices, ..self.mask };
        let (name, heads) = (format!("{} {}", self.number, mask.name), scale.heads(heads));
        let mut start = 0;
        let length = |&end: &usize| {
            let length = scale.tokens(end) - start;
            start += length;
            length
        };
        let lengths: Vec<usize> = self.documents.iter().map(length).collect();
        assert_eq!(lengths.iter().sum::<usize>(), mask.tokens, "{name}");
        ReferenceCase { name, lengths, padding: Padding::None, heads, dims: (dim, dim), mask: mask.mask() }
    }
}

/// Case 10, which is planned only: masks with the lengths of their documents and their attended areas.
pub fn benchmarks() -> [(packs::Case, Vec<usize>, u64); 2] {
    const TOKENS: usize = 147456;
    const BLOCK: usize = 20480;
    let ends: Vec<usize> = (0..=6).map(|i| BLOCK * i).chain([TOKENS]).collect();
    let seen = [[0, 1], [0, 2], [0, 3], [0, 4], [4, 5], [4, 6]].map(|[start, end]| [BLOCK * start, BLOCK * end]);
    let keys = [&seen[..], &[[6 * BLOCK, TOKENS]]].concat();
    let case = |name, chunk, slices| packs::Case { name, tokens: TOKENS, chunk, padded: true, slices };
    [
        (case("full_attn_144k", 2048, slices(&[[0, TOKENS]], &[[0, TOKENS]], &[0])), vec![TOKENS], 21743271936),
        (
            case("varlen_block_causal_144k", 4096, slices(&consecutive(&ends), &keys, &[0])),
            vec![4 * BLOCK, 2 * BLOCK, TOKENS - 6 * BLOCK],
            6056574976,
        ),
    ]
}
