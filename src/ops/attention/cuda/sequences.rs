//! Sequences as the unfused kernels take them.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::sizes::GENERAL_TILES;
use crate::ops::attention::attended::AttendedKeys;
use crate::plan::Block;
use crate::tensor::cuda::{Argument, CudaMemory, Place};
use crate::tensor::product;

/// Sequences as the unfused kernels take them: see `kernels/unfused.cu`.
#[derive(Debug)]
pub(crate) struct SequenceLists {
    sequences: CudaMemory,
    /// Tiles of the rows of queries and of keys, and how many.
    parts: [(CudaMemory, usize); 2],
    starts: CudaMemory,
    intervals: CudaMemory,
}

/// `Sequence` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawSequence {
    q_row: i32,
    q_rows: i32,
    k_row: i32,
    k_rows: i32,
    /// Index of its first probability.
    at: i64,
}

/// `Parts` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawParts {
    sequences: u64,
    parts: u64,
    pub(crate) count: i64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawParts {}

/// `Attended` of `kernels/unfused.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct RawAttended {
    starts: u64,
    intervals: u64,
}

// SAFETY: laid out as C does.
unsafe impl Argument for RawAttended {}

impl SequenceLists {
    pub(super) fn new(place: &Arc<Place>, blocks: &[Block], attended: &AttendedKeys, q_heads: usize) -> Self {
        let mut sequences = Vec::new();
        let (mut by_queries, mut by_keys): (Vec<[i32; 2]>, Vec<[i32; 2]>) = Default::default();
        let mut at = 0;
        for (queries, keys) in blocks.iter().filter(|(queries, keys)| !queries.is_empty() && !keys.is_empty()) {
            let tiles = |rows: usize, size: usize| {
                let sequence = sequences.len() as i32;
                (0..rows).step_by(size).map(move |row| [sequence, row as i32])
            };
            by_queries.extend(tiles(queries.len(), GENERAL_TILES.queries));
            by_keys.extend(tiles(keys.len(), GENERAL_TILES.keys));
            let [q_row, q_rows, k_row, k_rows] =
                [queries.start, queries.len(), keys.start, keys.len()].map(|rows| rows as i32);
            sequences.push(RawSequence { q_row, q_rows, k_row, k_rows, at });
            at += product(&[queries.len(), keys.len(), q_heads]) as i64;
        }
        let starts: Vec<u32> = attended.starts().iter().map(|&start| start as u32).collect();
        let interval = |keys: &std::ops::Range<usize>| [keys.start as i32, keys.end as i32];
        let intervals: Vec<[i32; 2]> = attended.ranges().iter().map(interval).collect();
        let part = |parts: Vec<[i32; 2]>| (place.list(&parts), parts.len());
        SequenceLists {
            sequences: place.list(&sequences),
            parts: [part(by_queries), part(by_keys)],
            starts: place.list(&starts),
            intervals: place.list(&intervals),
        }
    }

    fn raw(&self, place: &Arc<Place>, (parts, count): &(CudaMemory, usize)) -> RawParts {
        RawParts { sequences: self.sequences.reads(place), parts: parts.reads(place), count: *count as i64 }
    }

    pub(crate) fn queries(&self, place: &Arc<Place>) -> RawParts {
        self.raw(place, &self.parts[0])
    }

    pub(crate) fn keys(&self, place: &Arc<Place>) -> RawParts {
        self.raw(place, &self.parts[1])
    }

    pub(crate) fn attended(&self, place: &Arc<Place>) -> RawAttended {
        RawAttended { starts: self.starts.reads(place), intervals: self.intervals.reads(place) }
    }
}
