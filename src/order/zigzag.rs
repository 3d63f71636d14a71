//! The zigzag order: each document in two chunks per rank, one from each end. Balanced under a causal mask.

use crate::layout::Batch;
use crate::order::{Run, TokenOrder};

/// Each document is cut into `2W` chunks and rank `r` of `W` holds chunks `r` and `2W - 1 - r`.
///
/// This is the order of Megatron-LM and Transformer Engine, which need document lengths that `2W` divides. Here any
/// length works: a document of `L` rows has `q = L div 2W` rows per chunk and `m = L mod 2W` spare rows, which go one
/// each to chunks. All spare rows of a pack are dealt out in turn: the next one goes to the next of `2W` *slots*,
/// slot `s < W` being the first chunk of rank `s` and slot `W + s` its second chunk. So ranks differ by at most one
/// row over the whole pack. In a dense batch every sequence is dealt out alike (one row per sequence).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Zigzag;

/// What the documents before one have used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Before {
    /// Sum of their `q`.
    whole: usize,
    /// Sum of their `m`.
    spare: usize,
}

/// Spare rows in slot `slot` after `spare` of them were dealt out over `slots`.
fn dealt(spare: usize, slots: usize, slot: usize) -> usize {
    spare / slots + usize::from(slot < spare % slots)
}

/// Spare rows in the slots before `slot` after `spare` of them were dealt out over `slots`.
fn dealt_before(spare: usize, slots: usize, slot: usize) -> usize {
    spare / slots * slot + slot.min(spare % slots)
}

impl Before {
    /// Only spare rows count, where rows are counted elsewhere.
    pub(super) fn with_spare(spare: usize) -> Self {
        Before { whole: 0, spare }
    }

    /// Rows of `rank` before the document.
    fn rows(self, ranks: usize, rank: usize) -> usize {
        let slots = 2 * ranks;
        2 * self.whole + dealt(self.spare, slots, rank) + dealt(self.spare, slots, ranks + rank)
    }
}

/// How one document is cut.
#[derive(Clone, Copy)]
pub(super) struct Chunks {
    ranks: usize,
    /// Rows of a chunk without spare ones.
    whole: usize,
    /// Spare rows of the document.
    spare: usize,
    /// Spare rows of the documents before it.
    dealt: usize,
}

impl Chunks {
    pub(super) fn new(ranks: usize, stored: usize, before: Before) -> Self {
        Chunks { ranks, whole: stored / (2 * ranks), spare: stored % (2 * ranks), dealt: before.spare }
    }

    /// The document's spare rows in the slots before `slot`.
    fn spare_before(self, slot: usize) -> usize {
        let slots = 2 * self.ranks;
        dealt_before(self.dealt + self.spare, slots, slot) - dealt_before(self.dealt, slots, slot)
    }

    /// Where chunk `chunk` starts in the document; chunk `2W` starts at the end.
    fn start(self, chunk: usize) -> usize {
        let spare = if chunk <= self.ranks {
            self.spare_before(chunk)
        } else {
            // Chunks from W on are the slots from 2W - 1 down.
            self.spare_before(self.ranks) + self.spare - self.spare_before(3 * self.ranks - chunk)
        };
        chunk * self.whole + spare
    }

    /// The two chunks of `rank` as start and length in the document.
    pub(super) fn of(self, rank: usize) -> [(usize, usize); 2] {
        [rank, 2 * self.ranks - 1 - rank].map(|chunk| {
            let start = self.start(chunk);
            (start, self.start(chunk + 1) - start)
        })
    }

    /// The chunk that holds `position`.
    fn chunk_of(self, position: usize) -> usize {
        // Starts ascend: the last chunk that starts at or before the position is not empty and holds it. It starts
        // at least chunk * q and at most chunk * (q + 1), which leaves few to search where chunks are long.
        let first = position / (self.whole + 1);
        let last = position.checked_div(self.whole).unwrap_or(usize::MAX).min(2 * self.ranks - 1);
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.start(middle) <= position {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// The position of the rank's row `local` of this document.
    fn position(self, rank: usize, local: usize) -> usize {
        let [(first, len), (second, _)] = self.of(rank);
        if local < len { first + local } else { second + local - len }
    }

    /// The rank that holds `position`, and its index among that rank's rows of this document.
    fn locate(self, position: usize) -> (usize, usize) {
        let chunk = self.chunk_of(position);
        let at = position - self.start(chunk);
        if chunk < self.ranks {
            (chunk, at)
        } else {
            let rank = 2 * self.ranks - 1 - chunk;
            (rank, self.of(rank)[0].1 + at)
        }
    }
}

/// Rows of `rank` of each sequence of a dense batch.
fn dense_rows(seq: usize, ranks: usize, rank: usize) -> usize {
    Chunks::new(ranks, seq, Before::default()).of(rank).iter().map(|&(_, len)| len).sum()
}

impl TokenOrder for Zigzag {
    const NAME: &'static str = "zigzag";

    /// For a pack, what was used up before each document and in all; nothing for a dense batch.
    type Table = Vec<Before>;

    fn table(batch: &dyn Batch, ranks: usize) -> Vec<Before> {
        if batch.uniform().is_some() {
            return Vec::new();
        }
        let mut before = Before::default();
        let mut table = Vec::with_capacity(batch.documents() + 1);
        table.push(before);
        for document in 0..batch.documents() {
            let stored = batch.document(document).stored;
            before.whole += stored / (2 * ranks);
            before.spare += stored % (2 * ranks);
            table.push(before);
        }
        table
    }

    fn rows(batch: &dyn Batch, table: &Vec<Before>, ranks: usize, rank: usize) -> usize {
        match batch.uniform() {
            Some(seq) => batch.documents() * dense_rows(seq, ranks, rank),
            None => table[batch.documents()].rows(ranks, rank),
        }
    }

    fn runs(batch: &dyn Batch, table: &Vec<Before>, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        for index in 0..batch.documents() {
            let document = batch.document(index);
            let before = table.get(index).copied().unwrap_or_default();
            let [first, second] = Chunks::new(ranks, document.stored, before).of(rank);
            let start = document.start;
            // Chunks that touch (the last rank's) are one run.
            if first.1 == 0 || first.0 + first.1 == second.0 {
                let len = first.1 + second.1;
                if len > 0 {
                    let from = if first.1 == 0 { second.0 } else { first.0 };
                    each(Run { start: start + from, step: 1, len });
                }
                continue;
            }
            for (from, len) in [first, second] {
                if len > 0 {
                    each(Run { start: start + from, step: 1, len });
                }
            }
        }
    }

    fn token(batch: &dyn Batch, table: &Vec<Before>, ranks: usize, rank: usize, local: usize) -> usize {
        match batch.uniform() {
            Some(seq) => {
                let rows = dense_rows(seq, ranks, rank);
                let chunks = Chunks::new(ranks, seq, Before::default());
                local / rows * seq + chunks.position(rank, local % rows)
            }
            None => {
                let index = table.partition_point(|before| before.rows(ranks, rank) <= local) - 1;
                let (document, before) = (batch.document(index), table[index]);
                let chunks = Chunks::new(ranks, document.stored, before);
                document.start + chunks.position(rank, local - before.rows(ranks, rank))
            }
        }
    }

    fn locate(batch: &dyn Batch, table: &Vec<Before>, ranks: usize, token: usize) -> (usize, usize) {
        match batch.uniform() {
            Some(seq) => {
                let (rank, local) = Chunks::new(ranks, seq, Before::default()).locate(token % seq);
                (rank, token / seq * dense_rows(seq, ranks, rank) + local)
            }
            None => {
                let index = batch.document_of(token);
                let (document, before) = (batch.document(index), table[index]);
                let (rank, local) = Chunks::new(ranks, document.stored, before).locate(token - document.start);
                (rank, before.rows(ranks, rank) + local)
            }
        }
    }
}
