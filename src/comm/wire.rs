//! What carries messages between the mailboxes of ranks, whether they are threads or processes.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytemuck::{Pod, Zeroable};

use super::clock::{Clock, SystemClock};
use super::mailbox::{Mailbox, RankFailure};
use super::parcel::Parcel;
use super::tag::Tag;
use crate::tensor::{Host, Storage};

/// How the ranks of a run wait for each other.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The longest that one wait, barrier or split may take. Default: 10 minutes.
    pub deadline: Duration,
    /// What the deadline is measured with. Default: the time that passes.
    pub clock: Arc<dyn Clock>,
}

impl Default for Waiting {
    fn default() -> Self {
        Waiting { deadline: Duration::from_secs(600), clock: Arc::new(SystemClock::default()) }
    }
}

/// What carries the messages of one rank to the mailboxes of the others. Ranks are those of the run.
pub(super) trait Carrier: Debug + Send + Sync + 'static {
    /// Where the buffers that it carries live.
    type Storage: Storage;

    fn waiting(&self) -> &Waiting;

    /// The mailbox of a rank that lives in this process.
    fn mailbox(&self, me: usize) -> &Mailbox<Packet<Self::Storage>>;

    /// What the rank `me`, which lives in this process, has done so far.
    fn counts(&self, me: usize) -> &Counts;

    /// The rank that `rank` waits for, as far as that can be found out here; may take a while.
    fn awaited(&self, rank: usize) -> Option<usize>;

    /// The ranks that wait for each other from `rank` on: whom it waits for, whom that one waits for, up to a rank that
    /// waits for none or is there already.
    fn waits(&self, rank: usize) -> Vec<usize> {
        let (mut at, mut waits) = (rank, Vec::new());
        while let Some(next) = self.awaited(at) {
            let circle = next == rank || waits.contains(&next);
            waits.push(next);
            if circle {
                break;
            }
            at = next;
        }
        waits
    }

    /// Sends without waiting. Messages from one rank to another arrive in the order in which they were sent.
    fn deliver(&self, stream: u64, from: usize, to: usize, packet: Packet<Self::Storage>);

    /// Tells a failure to every rank.
    fn fail(&self, by: usize, failure: RankFailure);
}

/// What one rank has done so far, in all its groups.
#[derive(Debug, Default)]
pub(super) struct Counts {
    operations: AtomicU64,
    splits: AtomicU64,
    waiting: AtomicU64,
}

/// Bits of [`Counts::waiting`] that say for whom.
const WHOM: u64 = u32::MAX as u64;

impl Counts {
    /// Counts an exchange, barrier or split; gives its number, from 1.
    pub(super) fn begin_operation(&self) -> u64 {
        self.operations.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a split; gives its number, from 1.
    pub(super) fn begin_split(&self) -> u64 {
        self.splits.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Remembers whom the rank waits for, if it waits.
    pub(super) fn wait_for(&self, peer: Option<usize>) {
        let whom = peer.map_or(0, |peer| peer as u64 + 1);
        let number = self.waiting.load(Ordering::Relaxed) >> 32;
        let number = if peer.is_some() { number.wrapping_add(1) } else { number };
        self.waiting.store(number << 32 | whom & WHOM, Ordering::Relaxed);
    }

    /// The rank of the run that it waits for.
    pub(super) fn awaited(&self) -> Option<usize> {
        (self.waiting.load(Ordering::Relaxed) & WHOM).checked_sub(1).map(|rank| rank as usize)
    }

    /// Changes with every wait.
    #[cfg(feature = "mpi")]
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Exchanges, barriers and splits.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

/// What goes from a rank to another. Parcels are one stream, notes another, so that a barrier may stand on either side
/// of an exchange that is under way.
#[derive(Debug)]
pub(super) enum Packet<S = Host> {
    Parcel {
        tag: Tag,
        parcel: Parcel<S>,
    },
    /// What is known of ranks, the sender first, then the one before it in the group, and so on.
    Note {
        kind: NoteKind,
        entries: Vec<SplitEntry>,
    },
}

/// What ranks tell each other about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoteKind {
    Barrier,
    Split,
}

impl NoteKind {
    /// The operation.
    pub(super) fn name(self) -> &'static str {
        match self {
            NoteKind::Barrier => "barrier",
            NoteKind::Split => "split",
        }
    }

    pub(super) fn describe(self) -> String {
        format!("a {}", self.name())
    }
}

/// What a rank says in a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SplitEntry {
    pub(super) color: u64,
    pub(super) key: u64,
    /// The number of the group if this rank leads it.
    pub(super) group: u64,
}

impl<S: Storage> Packet<S> {
    pub(super) fn describe(&self) -> String {
        match self {
            Packet::Parcel { parcel, .. } => format!("{} x {}", parcel.len(), parcel.dtype()),
            Packet::Note { kind, .. } => kind.describe(),
        }
    }
}
