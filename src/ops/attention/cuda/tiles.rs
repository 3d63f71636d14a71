//! A tile as GPUs take it: lists that are made once for all layers, heads and passes, and uploaded once.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::sequences::SequenceLists;
use super::sizes::{Pass, Side};
use crate::ops::attention::AttentionShape;
use crate::ops::attention::attended::AttendedKeys;
use crate::ops::attention::shares::Shares;
use crate::ops::attention::visits::{TileLists, TileSizes};
use crate::plan::{Block, TileCells};
use crate::tensor::cuda::{Argument, CudaMemory, Place};

/// A tile as a GPU takes it: see `kernels/attention.cuh`.
#[derive(Debug)]
pub struct CudaTiles {
    cells: TileCells,
    place: Arc<Place>,
    attended: OnceLock<AttendedKeys>,
    lists: Made<ListsOf, DeviceLists>,
    /// By number of query heads, on which it depends where probabilities are.
    sequences: Made<usize, SequenceLists>,
}

/// What lists are made of besides the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ListsOf {
    side: Side,
    sizes: TileSizes,
    /// Heads, and how often each goes through its visits, where blocks have shares.
    dealt: Option<(usize, usize)>,
}

/// Values by what they are made of, each made once. There are a few of them, for there are a few kernels.
#[derive(Debug)]
struct Made<K, V>(Mutex<Vec<(K, Arc<V>)>>);

impl<K, V> Default for Made<K, V> {
    fn default() -> Self {
        Made(Mutex::default())
    }
}

impl<K: PartialEq, V> Made<K, V> {
    fn get(&self, of: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = made.iter().find(|(key, _)| *key == of) {
            return value.clone();
        }
        let value = Arc::new(make());
        made.push((of, value.clone()));
        value
    }
}

impl CudaTiles {
    pub(super) fn new(cells: TileCells, place: Arc<Place>) -> Self {
        CudaTiles { cells, place, attended: OnceLock::new(), lists: Made::default(), sequences: Made::default() }
    }

    fn attended(&self) -> &AttendedKeys {
        self.attended.get_or_init(|| AttendedKeys::new(&self.cells))
    }

    /// The lists of a kernel that has a block for each item and head.
    pub(super) fn lists(&self, pass: Pass, sizes: TileSizes) -> Arc<DeviceLists> {
        self.listed(ListsOf { side: pass.side(), sizes, dealt: None })
    }

    /// The lists of a kernel whose blocks have shares, one for each multiprocessor.
    pub(super) fn dealt(&self, pass: Pass, sizes: TileSizes, shape: &AttentionShape) -> Arc<DeviceLists> {
        let dealt = match pass.side() {
            Side::Queries => (shape.q_heads, 1),
            // Queries of all heads that have these keys.
            Side::Keys => (shape.kv_heads, shape.group()),
        };
        self.listed(ListsOf { side: pass.side(), sizes, dealt: Some(dealt) })
    }

    fn listed(&self, of: ListsOf) -> Arc<DeviceLists> {
        self.lists.get(of, || {
            let lists = match of.side {
                Side::Queries => TileLists::by_queries(self.attended(), of.sizes),
                Side::Keys => TileLists::by_keys(self.attended(), of.sizes),
            };
            let deal = |(heads, rounds)| Shares::deal(&lists.items, heads, rounds, self.place.processors());
            let shares = of.dealt.map(deal).unwrap_or_default();
            DeviceLists::new(&self.place, &lists, &shares)
        })
    }

    /// Rows of each sequence in both buffers.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.cells.blocks
    }

    /// The lists of the unfused kernels.
    pub(crate) fn sequences(&self, q_heads: usize) -> Arc<SequenceLists> {
        let make = || SequenceLists::new(&self.place, self.blocks(), self.attended(), q_heads);
        self.sequences.get(q_heads, make)
    }

    /// Checks the buffers that a tile is used with.
    pub(crate) fn expect(&self, queries: usize, keys: usize) {
        assert_eq!((self.cells.queries, self.cells.keys), (queries, keys), "rows of the tile, and of q and kv");
    }
}

/// Items, visits, and the shares of blocks on the GPU, in one piece of memory.
#[derive(Debug)]
pub(super) struct DeviceLists {
    memory: CudaMemory,
    /// Where visits, words, units and ends begin, in bytes.
    starts: [u64; 4],
    items: usize,
    blocks: usize,
}

/// `Tiles` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RawTiles {
    items: u64,
    visits: u64,
    table: u64,
    count: i64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawTiles {}

/// `Shares` of `kernels/attention_sm90.cuh`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RawShares {
    units: u64,
    ends: u64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawShares {}

impl DeviceLists {
    fn new(place: &Arc<Place>, lists: &TileLists, shares: &Shares) -> Self {
        let TileLists { items, visits, table } = lists;
        let Shares { units, ends } = shares;
        let others: [&[u8]; 4] = [
            bytemuck::cast_slice(visits),
            bytemuck::cast_slice(table),
            bytemuck::cast_slice(units),
            bytemuck::cast_slice(ends),
        ];
        let mut bytes: Vec<u8> = bytemuck::cast_slice(items).to_vec();
        let starts = others.map(|part| {
            let start = bytes.len() as u64;
            bytes.extend(part);
            start
        });
        DeviceLists { memory: place.list(&bytes), starts, items: items.len(), blocks: ends.len() }
    }

    /// How many items.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// How many blocks have a share.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(super) fn tiles(&self, place: &Arc<Place>) -> RawTiles {
        let items = self.memory.reads(place);
        let [visits, table, ..] = self.starts.map(|start| items + start);
        RawTiles { items, visits, table, count: self.items as i64 }
    }

    pub(super) fn shares(&self, place: &Arc<Place>) -> RawShares {
        let items = self.memory.reads(place);
        let [.., units, ends] = self.starts.map(|start| items + start);
        RawShares { units, ends }
    }
}
