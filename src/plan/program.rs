//! Programs: the steps of one rank's attention, forward or backward.

use std::sync::Arc;

use serde::Serialize;

use crate::order::Rows;
use crate::plan::Piece;

/// What an exchange carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Rows of keys and values, in the storage type.
    Keys,
    /// Rows of their gradients, in the accumulation type; they are added where they arrive.
    Gradients,
    /// Rows of queries, in the storage type; in forward programs only.
    Queries,
    /// Rows of partial results, output and log-sum-exp, in the accumulation type; they are merged into this rank's
    /// where they arrive. In forward programs only.
    Results,
}

/// In what numbers gradients of keys and values travel. Sums are always held in the accumulation type, and what a rank
/// keeps for itself is never rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// In the accumulation type: f32 for 16-bit storage.
    #[default]
    Accumulated,
    /// Rounded to the storage type: half the bytes where that has 16 bits, and one more rounding of every partial sum.
    Stored,
}

impl Wire {
    /// Bytes of an element, for storage and accumulation types of these sizes.
    pub fn bytes(self, elem: usize, acc: usize) -> usize {
        match self {
            Wire::Accumulated => acc,
            Wire::Stored => elem,
        }
    }
}

/// The ranks at the other side of a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Peers {
    /// One rank, which receives or sends.
    One(usize),
    /// Several ranks that all receive the same rows.
    Many(Vec<usize>),
}

impl Peers {
    /// The ranks.
    pub fn as_slice(&self) -> &[usize] {
        match self {
            Peers::One(rank) => std::slice::from_ref(rank),
            Peers::Many(ranks) => ranks,
        }
    }
}

impl From<usize> for Peers {
    fn from(rank: usize) -> Self {
        Peers::One(rank)
    }
}

impl From<Vec<usize>> for Peers {
    fn from(ranks: Vec<usize>) -> Self {
        Peers::Many(ranks)
    }
}

/// Rows that one rank sends others, out of or into a slot. What is sent may have many receivers, what is received has
/// one sender.
///
/// A transfer to the rank itself is a copy. Where both sides list no rows, there is no message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// The other ranks.
    pub peers: Peers,
    /// Slot on this side: of queries for queries and results, else of keys. Results arrive in slot 0.
    pub slot: usize,
    /// Rows of the slot, in the order in which they travel. No row of received keys is there twice.
    pub rows: Rows,
}

impl Transfer {
    /// Rows of `slot` to or from `peers`.
    pub fn new(peers: impl Into<Peers>, slot: usize, rows: impl Into<Rows>) -> Self {
        Transfer { peers: peers.into(), slot, rows: rows.into() }
    }

    /// The other rank, if there is one.
    pub fn peer(&self) -> Option<usize> {
        match self.peers.as_slice() {
            &[peer] => Some(peer),
            _ => None,
        }
    }
}

/// One step. Slots hold rows of keys and values, and in a backward program their gradients too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Hands rows to other ranks and says what is expected from them; does not wait.
    Post {
        /// Number of the exchange, unique in the program, and the same on all ranks that have a message in it.
        exchange: usize,
        /// Keys and values, or gradients.
        content: Content,
        /// Outgoing rows.
        sends: Vec<Transfer>,
        /// Incoming rows. Keys and queries are written, gradients are added and results merged, in the order of this
        /// list.
        receives: Vec<Transfer>,
    },
    /// Waits for an exchange and puts what came where the post said.
    Wait {
        /// The exchange.
        exchange: usize,
    },
    /// Attends from this rank's queries to the keys of a slot.
    Tile {
        /// The slot.
        slot: usize,
        /// Which cells. Programs of both passes share them where they attend the same.
        pieces: Arc<[Piece]>,
    },
    /// Attends from queries of other ranks, in a slot of queries, to the keys of a slot. The result stays with the
    /// queries until it is sent back.
    Serve {
        /// The slot of queries, at least 1.
        queries: usize,
        /// The slot of keys.
        slot: usize,
        /// Which cells. The queries are of other ranks.
        pieces: Arc<[Piece]>,
    },
    /// Merges the result of the last tile into the results before it. The first tile needs none.
    Merge,
    /// Gives back the memory of a slot.
    Free {
        /// The slot.
        slot: usize,
    },
}

/// The steps of one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Rows of each slot. Slot 0 holds this rank's own keys and values at the start.
    pub slots: Vec<usize>,
    /// Rows of each slot of queries of other ranks, from slot 1 on; slot 0, this rank's own queries, is not listed.
    pub queries: Vec<usize>,
    /// The slot whose gradients are those of this rank's own keys and values at the end of a backward program.
    pub home: usize,
    /// What to do, in order.
    pub steps: Vec<Step>,
}

impl Program {
    /// Steps over key slots with so many rows, whose gradients come home to slot 0.
    pub fn new(slots: Vec<usize>, steps: Vec<Step>) -> Self {
        Program { slots, steps, ..Program::default() }
    }

    /// Gives every peer of a transfer another number.
    pub fn rename_peers(&mut self, name: impl Fn(usize) -> usize) {
        let rename = |transfer: &mut Transfer| match &mut transfer.peers {
            Peers::One(peer) => *peer = name(*peer),
            Peers::Many(peers) => peers.iter_mut().for_each(|peer| *peer = name(*peer)),
        };
        for step in &mut self.steps {
            if let Step::Post { sends, receives, .. } = step {
                sends.iter_mut().chain(receives).for_each(rename);
            }
        }
    }

    /// Rows that this rank hands to other ranks.
    pub fn rows_sent(&self, rank: usize, content: Content) -> usize {
        let others = |send: &Transfer| send.peers.as_slice().iter().filter(|&&peer| peer != rank).count();
        let sent = |step: &Step| match step {
            Step::Post { content: c, sends, .. } if *c == content => {
                sends.iter().map(|send| send.rows.len() * others(send)).sum()
            }
            _ => 0,
        };
        self.steps.iter().map(sent).sum()
    }

    /// The tiles of own queries in order: slots and cells.
    pub fn tiles(&self) -> impl Iterator<Item = (usize, &[Piece])> {
        self.steps.iter().filter_map(|step| match step {
            Step::Tile { slot, pieces } => Some((*slot, &pieces[..])),
            _ => None,
        })
    }

    /// Exchanges that bring this rank keys and values from other ranks.
    pub fn stages(&self, rank: usize) -> usize {
        let brings = |step: &&Step| match step {
            Step::Post { content: Content::Keys, receives, .. } => {
                receives.iter().any(|receive| receive.peer() != Some(rank) && !receive.rows.is_empty())
            }
            _ => false,
        };
        self.steps.iter().filter(brings).count()
    }

    /// Attended cells of all tiles, those of other ranks' queries among them.
    pub fn area(&self) -> u64 {
        let served = self.steps.iter().filter_map(|step| match step {
            Step::Serve { pieces, .. } => Some(&pieces[..]),
            _ => None,
        });
        self.tiles().map(|(_, pieces)| pieces).chain(served).flatten().map(Piece::area).sum()
    }

    /// Most rows of keys and values that are held at one time, messages under way to this rank included.
    pub fn peak_rows(&self) -> usize {
        let mut held = vec![false; self.slots.len()];
        let (mut rows, mut peak) = (0, 0);
        let mut hold = |slot: usize, rows: &mut usize| {
            if !std::mem::replace(&mut held[slot], true) {
                *rows += self.slots[slot];
            }
        };
        hold(0, &mut rows);
        for step in &self.steps {
            match step {
                Step::Post { content: Content::Keys, receives, .. } => {
                    receives.iter().for_each(|receive| hold(receive.slot, &mut rows));
                }
                Step::Free { slot } => rows -= self.slots[*slot],
                _ => {}
            }
            peak = peak.max(rows);
        }
        peak
    }
}
