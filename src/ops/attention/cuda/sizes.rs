//! Tiles of the kernels, and what their blocks are launched with: the constants of `kernels/`, which the tests compare.

use crate::ops::attention::visits::TileSizes;
use crate::tensor::cuda::{Dims, Kernel};

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    /// The gradient of queries.
    BackwardQueries,
    /// The gradient of keys and values.
    BackwardKeys,
}

/// Whose rows the items of a kernel have; it visits the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Queries,
    Keys,
}

impl Pass {
    pub(super) fn side(self) -> Side {
        match self {
            Pass::Forward | Pass::BackwardQueries => Side::Queries,
            Pass::BackwardKeys => Side::Keys,
        }
    }

    /// The kernel that computes element by element.
    pub(super) fn general(self) -> Kernel {
        match self {
            Pass::Forward => Kernel::AttentionForwardGeneral,
            Pass::BackwardQueries => Kernel::AttentionBackwardQueriesGeneral,
            Pass::BackwardKeys => Kernel::AttentionBackwardKeysGeneral,
        }
    }

    /// The kernel with products of tensor cores.
    pub(super) fn of_tensor_cores(self) -> Kernel {
        match self {
            Pass::Forward => Kernel::AttentionForward,
            Pass::BackwardQueries => Kernel::AttentionBackwardQueries,
            Pass::BackwardKeys => Kernel::AttentionBackwardKeys,
        }
    }

    /// The kernel for Hopper.
    pub(super) fn of_hopper(self) -> Kernel {
        match self {
            Pass::Forward => Kernel::AttentionForwardSm90,
            Pass::BackwardQueries => Kernel::AttentionBackwardQueriesSm90,
            Pass::BackwardKeys => Kernel::AttentionBackwardKeysSm90,
        }
    }
}

/// Tiles of a kernel, and what its blocks are launched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) tiles: TileSizes,
    pub(super) threads: u32,
    /// Bytes of shared memory.
    pub(super) shared: u32,
}

/// Rows of the tiles of kernels that have a block for each item and head.
pub(super) const GENERAL_TILES: TileSizes = TileSizes { queries: 64, keys: 64 };

/// Threads and bytes of shared memory of the kernels that go element by element, unfused ones among them: `THREADS` and
/// `SHARED_BYTES` of `kernels/tile_products.cuh`.
pub(crate) const GENERAL: (u32, u32) = (256, 4 * (2 * 64 * 36 + 64 * 68));

impl Sizes {
    /// Those of the kernel that computes element by element.
    pub(super) fn general() -> Self {
        Sizes { tiles: GENERAL_TILES, threads: GENERAL.0, shared: GENERAL.1 }
    }

    /// Those of the kernel with products of tensor cores, for heads of so many features of queries and of values: see
    /// `kernels/attention_forward.cu` and `kernels/attention_backward.cu`.
    pub(super) fn of_tensor_cores(pass: Pass, qk_dim: usize, v_dim: usize) -> Self {
        /// Heads whose kernels take smaller steps, or split what they compute, so that it fits.
        const WIDE: usize = 384;
        const NARROW: usize = 128;
        /// Bytes of a number.
        const ELEM: usize = 2;
        /// Threads of a block: a warp for 16 rows of its tile.
        const THREADS: u32 = 128;

        let (tiles, features) = (GENERAL_TILES, qk_dim + v_dim);
        let (threads, shared) = match pass {
            // The queries, and two stages of keys and values.
            Pass::Forward => (THREADS, ELEM * (tiles.queries * qk_dim + 2 * tiles.keys * features)),
            // Queries with their gradients, and two stages of keys and values.
            Pass::BackwardQueries => {
                let step = if features > WIDE { 32 } else { 64 };
                (THREADS, (tiles.queries + 2 * step) * features * ELEM)
            }
            // Keys and values, and two stages of queries with their gradients and two numbers.
            Pass::BackwardKeys => {
                let step = if features > NARROW { 32 } else { 64 };
                let threads = if features > WIDE { 2 * THREADS } else { THREADS };
                (threads, (tiles.keys + 2 * step) * features * ELEM + 2 * step * 12)
            }
        };
        Sizes { tiles, threads, shared: shared as u32 }
    }

    /// Those of the kernel for Hopper, where there is one: `LAUNCHED_WITH` of `kernels/attention_forward_sm90.cu` and
    /// `kernels/attention_backward_sm90.cu`.
    pub(super) fn of_hopper(pass: Pass, dims: Dims) -> Option<Self> {
        use Pass::{BackwardKeys, BackwardQueries, Forward};

        let (queries, keys, shared) = match (pass, dims) {
            (Forward, Dims::D64) => (128, 128, 82000),
            (Forward, Dims::D128) => (128, 128, 163920),
            (Forward, Dims::D192x128) => (128, 128, 213072),
            (Forward, Dims::D256) => (128, 64, 196688),
            (BackwardKeys, Dims::D64) => (64, 128, 67184),
            (BackwardKeys, Dims::D128) => (64, 128, 132720),
            (BackwardKeys, Dims::D192x128) => (32, 128, 123760),
            (BackwardQueries, Dims::D64) => (128, 128, 98384),
            (BackwardQueries, Dims::D128) => (128, 128, 196688),
            (BackwardQueries, Dims::D192x128) => (128, 64, 163920),
            (BackwardQueries, Dims::D256) => (128, 64, 196656),
            (BackwardKeys, Dims::D256) | (_, Dims::Any) => return None,
        };
        Some(Sizes { tiles: TileSizes { queries, keys }, threads: 384, shared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a file of `kernels/`.
    macro_rules! text {
        ($file:literal) => {
            include_str!(concat!("../../../../kernels/", $file))
        };
    }

    const ALL: [(usize, usize); 4] = [(64, 64), (128, 128), (192, 128), (256, 256)];

    #[test]
    fn kernels_are_launched_as_they_say() {
        let products = text!("tile_products.cuh");
        let constants = ["TILE = 64;", "THREADS = 256,", "DEPTH = 32,", "DEPTH_STRIDE = DEPTH + 4,"];
        assert!(constants.iter().all(|constant| products.contains(constant)), "GENERAL is of other constants");
        assert!(
            products.contains("TILE_STRIDE = TILE + 4;") && products.contains("4 * (FACTORS + TILE * TILE_STRIDE)")
        );
        let forward = text!("attention_forward.cu");
        assert!(forward.contains("(64, 64) 40960, (128, 128) 81920, (192, 128) 106496, (256, 256) 163840"));
        assert!(
            forward.contains("THREADS = ROWS * 2;")
                && forward.contains("SHARED_BYTES = QUERY_BYTES + 2 * STAGE_BYTES;")
        );
        let launched = |pass, (qk, v)| {
            let Sizes { threads, shared, .. } = Sizes::of_tensor_cores(pass, qk, v);
            (threads, shared)
        };
        let bytes = ALL.map(|dims| launched(Pass::Forward, dims));
        assert_eq!(bytes, [40, 80, 104, 160].map(|kilobytes| (128, kilobytes << 10)));
        let backward = text!("attention_backward.cu");
        for rule in [
            "SPLIT = QK_DIM + V_DIM > 384;",
            "QUERIES_THREADS = ROWS * 2, KEYS_THREADS = SPLIT ? KEYS * 4 : KEYS * 2;",
            "QUERIES_STEP = QK_DIM + V_DIM > 384 ? 32 : 64, KEYS_STEP = QK_DIM + V_DIM > 128 ? 32 : 64;",
            "QUERIES_SHARED_BYTES = (ROWS + 2 * QUERIES_STEP) * ROW_BYTES;",
            "KEYS_SHARED_BYTES = (KEYS + 2 * KEYS_STEP) * ROW_BYTES + 2 * KEYS_STEP * 12;",
        ] {
            assert!(backward.contains(rule), "of_tensor_cores has other rules than {rule}");
        }
        let keys = (64 + 2 * 32) * 1024 + 2 * 32 * 12;
        let wide = (256, 256);
        let (by_keys, by_queries) = (launched(Pass::BackwardKeys, wide), launched(Pass::BackwardQueries, wide));
        assert_eq!((by_keys, by_queries.0), ((256, keys), 128));
    }

    /// The kernels state what they are launched with, and do not compile where they compute something else.
    #[test]
    fn kernels_for_hopper_are_launched_as_they_say() {
        let stated = |text: &'static str| -> Vec<Vec<usize>> {
            let lines = text.lines().filter_map(|line| line.trim().strip_prefix("LAUNCHED_WITH(")?.strip_suffix(");"));
            lines.map(|line| line.split(", ").map(|number| number.parse().unwrap()).collect()).collect()
        };
        let launched = |pass| {
            ALL.into_iter().filter_map(move |(qk, v)| {
                let Sizes { tiles, shared, .. } = Sizes::of_hopper(pass, Dims::of(qk, v))?;
                Some(vec![qk, v, tiles.queries, tiles.keys, shared as usize])
            })
        };
        let forward: Vec<_> = launched(Pass::Forward).collect();
        assert_eq!(stated(text!("attention_forward_sm90.cu")), forward);
        let backward: Vec<_> = launched(Pass::BackwardKeys).chain(launched(Pass::BackwardQueries)).collect();
        assert_eq!(stated(text!("attention_backward_sm90.cu")), backward);
        let common = text!("attention_sm90.cuh");
        assert!(common.contains("GROUP_THREADS = 128, GROUP_ROWS = 64, COMPUTING_GROUPS = 2;"));
        assert!(common.contains("SM90_THREADS = (1 + COMPUTING_GROUPS) * GROUP_THREADS;"));
        let threads = Sizes::of_hopper(Pass::Forward, Dims::D64).map(|sizes| sizes.threads);
        assert_eq!(threads, Some(3 * 128));
    }
}
