//! How a message looks on the wire: a header of fixed size that says what it is and how many bytes follow.

use bytemuck::{Pod, Zeroable};

use super::super::mailbox::RankFailure;
use super::super::parcel::Parcel;
use super::super::tag::Tag;
use super::super::wire::{NoteKind, Packet, SplitEntry};
use crate::tensor::{Buffer, DType, Host};

/// What a process tells another.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message between ranks.
    Packet { stream: u64, packet: Packet },
    /// A rank failed.
    Failed(RankFailure),
    /// The sender's process lives; its rank may be computing.
    Alive,
    /// What does the receiver's rank do?
    Ask,
    /// The answer.
    Doing(Doing),
    /// The ranks of the sender's branch of the tree have ended, and send nothing after this.
    Ended(Endings),
    /// All ranks have ended.
    Over(Endings),
}

/// What a rank does, as far as its process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doing {
    /// Whom it waits for.
    pub(super) awaited: Option<usize>,
    /// Whether it has ended without an error.
    pub(super) ended: bool,
}

/// How a rank ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// What it says of its error, if it has one.
    pub(super) error: Option<String>,
    /// Whether that is the user's input.
    pub(super) is_input: bool,
}

/// How ranks ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endings {
    /// The failure that they heard of first.
    pub(super) failure: Option<RankFailure>,
    /// The different ways, each with the first rank of those that ended so.
    pub(super) ends: Vec<(usize, End)>,
}

impl Endings {
    /// Adds how a rank, and maybe others after it, ended.
    pub(super) fn add(&mut self, rank: usize, end: End) {
        match self.ends.iter_mut().find(|(_, known)| *known == end) {
            Some((first, _)) => *first = rank.min(*first),
            None => self.ends.push((rank, end)),
        }
    }

    /// As JSON, whose strings may hold anything.
    fn pack(&self) -> Vec<u8> {
        let failure = self.failure.as_ref().map(|RankFailure { rank, reason }| (rank, reason));
        let ends: Vec<_> = self.ends.iter().map(|(rank, end)| (rank, &end.error, end.is_input)).collect();
        serde_json::to_vec(&(failure, ends)).unwrap_or_default()
    }

    fn unpack(bytes: &[u8]) -> Option<Endings> {
        type Ends = Vec<(usize, Option<String>, bool)>;
        let (failure, ends): (Option<(usize, String)>, Ends) = serde_json::from_slice(bytes).ok()?;
        let failure = failure.map(|(rank, reason)| RankFailure { rank, reason });
        let ends = ends.into_iter().map(|(rank, error, is_input)| (rank, End { error, is_input })).collect();
        Some(Endings { failure, ends })
    }
}

/// The first part of a message.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Header {
    kind: u64,
    stream: u64,
    /// Depends on the kind.
    fields: [u64; 2],
    /// Of a parcel; else zero.
    tag: Tag,
    /// What follows, and in parts of how many bytes.
    pub(super) bytes: u64,
    pub(super) part: u64,
}

const PARCEL: u64 = 1;
const BARRIER: u64 = 2;
const SPLIT: u64 = 3;
const FAILED: u64 = 4;
const ENDED: u64 = 5;
const ALIVE: u64 = 6;
const ASK: u64 = 7;
const DOING: u64 = 8;
const OVER: u64 = 9;

/// Element types by the number that stands for them.
const DTYPES: [DType; 7] = [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::I64, DType::I32, DType::U8];

impl Header {
    /// Whether a failure follows, which need not wait its turn.
    pub(super) fn is_urgent(&self) -> bool {
        self.kind == FAILED
    }
}

impl Frame {
    /// Header and what follows it.
    pub(super) fn pack(self, part: usize) -> (Header, Buffer<u8>) {
        let nothing = || Buffer::from_slice(&[]);
        let mut of_parcel = Tag::zeroed();
        let (kind, stream, fields, bytes) = match self {
            Frame::Packet { stream, packet: Packet::Parcel { tag, parcel } } => {
                of_parcel = tag;
                let dtype = DTYPES.iter().position(|&dtype| dtype == parcel.dtype()).unwrap_or(DTYPES.len());
                (PARCEL, stream, [parcel.len() as u64, dtype as u64], parcel.into_bytes_here())
            }
            Frame::Packet { stream, packet: Packet::Note { kind, entries } } => {
                let kind = if kind == NoteKind::Barrier { BARRIER } else { SPLIT };
                (kind, stream, [0; 2], Buffer::from_slice(bytemuck::cast_slice(&entries)))
            }
            Frame::Failed(RankFailure { rank, reason }) => {
                (FAILED, 0, [rank as u64, 0], Buffer::from_slice(reason.as_bytes()))
            }
            Frame::Alive => (ALIVE, 0, [0; 2], nothing()),
            Frame::Ask => (ASK, 0, [0; 2], nothing()),
            Frame::Doing(Doing { awaited, ended }) => {
                (DOING, 0, [awaited.map_or(0, |rank| rank as u64 + 1), u64::from(ended)], nothing())
            }
            Frame::Ended(report) => (ENDED, 0, [0; 2], Buffer::from_slice(&report.pack())),
            Frame::Over(report) => (OVER, 0, [0; 2], Buffer::from_slice(&report.pack())),
        };
        (Header { kind, stream, fields, tag: of_parcel, bytes: bytes.len() as u64, part: part as u64 }, bytes)
    }

    /// What a header and the bytes that came after it say; `None` if this is not of this program's making.
    pub(super) fn unpack(header: Header, bytes: Buffer<u8>) -> Option<Frame> {
        let Header { kind, stream, fields: [a, b], tag, .. } = header;
        let packet = |packet| Some(Frame::Packet { stream, packet });
        let entries =
            |bytes: &[u8]| bytes.chunks_exact(size_of::<SplitEntry>()).map(bytemuck::pod_read_unaligned).collect();
        let note = |kind| match bytes.len() % size_of::<SplitEntry>() {
            0 => packet(Packet::Note { kind, entries: entries(&bytes) }),
            _ => None,
        };
        match kind {
            PARCEL => {
                let (len, dtype) = (a as usize, *DTYPES.get(b as usize)?);
                // A parcel without bytes says of its elements only how many there are.
                if !len.checked_mul(dtype.size()).is_some_and(|all| bytes.is_empty() || all == bytes.len()) {
                    return None;
                }
                packet(Packet::Parcel { tag, parcel: Parcel::<Host>::of_bytes(bytes, len, dtype) })
            }
            BARRIER => note(NoteKind::Barrier),
            SPLIT => note(NoteKind::Split),
            FAILED => {
                let reason = String::from_utf8_lossy(&bytes).into_owned();
                Some(Frame::Failed(RankFailure { rank: a as usize, reason }))
            }
            ALIVE => Some(Frame::Alive),
            ASK => Some(Frame::Ask),
            DOING => Some(Frame::Doing(Doing { awaited: a.checked_sub(1).map(|rank| rank as usize), ended: b == 1 })),
            ENDED => Some(Frame::Ended(Endings::unpack(&bytes)?)),
            OVER => Some(Frame::Over(Endings::unpack(&bytes)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::parcel::Operation;

    /// What arrives of a frame.
    fn sent(frame: Frame) -> Option<Frame> {
        let (header, bytes) = frame.pack(100);
        let wire: Vec<u8> = bytemuck::bytes_of(&header).to_vec();
        assert_eq!((header.bytes, header.part), (bytes.len() as u64, 100));
        Frame::unpack(bytemuck::pod_read_unaligned(&wire), bytes)
    }

    #[test]
    fn parcels_keep_elements_type_and_stream() {
        let values = [1.5f64, -0.0, f64::NAN, 7.0];
        let tag = Tag::from(Operation::under("ring", 5));
        let packet = Packet::Parcel { tag, parcel: Buffer::from_slice(&values).into() };
        let Some(Frame::Packet { stream: 9, packet: Packet::Parcel { tag: found, parcel } }) =
            sent(Frame::Packet { stream: 9, packet })
        else {
            panic!("not a parcel");
        };
        assert_eq!(found, tag);
        assert_eq!((parcel.len(), parcel.dtype()), (4, DType::F64));
        let found = parcel.open::<f64>().unwrap();
        assert!(found.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits()));
        let packet = Packet::Parcel { tag, parcel: Parcel::announced(1000, DType::F32) };
        let (header, bytes) = Frame::Packet { stream: 9, packet }.pack(100);
        assert!(bytes.is_empty());
        let Some(Frame::Packet { packet: Packet::Parcel { parcel, .. }, .. }) = Frame::unpack(header, bytes) else {
            panic!("not a parcel");
        };
        assert_eq!((parcel.len(), parcel.dtype()), (1000, DType::F32));
        assert!(parcel.open::<f32>().is_none(), "its elements took another way");
        for dtype in [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::I64, DType::I32, DType::U8] {
            assert!(DTYPES.contains(&dtype), "{dtype}");
        }
    }

    #[test]
    fn notes_keep_their_numbers() {
        let big = u64::MAX;
        let said =
            vec![SplitEntry { color: big, key: big - 1, group: big - 2 }, SplitEntry { color: 0, key: 1, group: 2 }];
        for (kind, said) in [(NoteKind::Split, said), (NoteKind::Barrier, vec![])] {
            let note = sent(Frame::Packet { stream: 3, packet: Packet::Note { kind, entries: said.clone() } });
            let Some(Frame::Packet { stream: 3, packet: Packet::Note { kind: found, entries } }) = note else {
                panic!("{note:?}");
            };
            assert_eq!((found, entries), (kind, said), "more than an i32 holds");
        }
        let failed = sent(Frame::Failed(RankFailure { rank: 5, reason: "naïve".into() }));
        assert!(matches!(&failed, Some(Frame::Failed(f)) if f.rank == 5 && f.reason == "naïve"), "{failed:?}");
        assert!(matches!(sent(Frame::Alive), Some(Frame::Alive)) && matches!(sent(Frame::Ask), Some(Frame::Ask)));
        for (awaited, ended) in [(None, false), (Some(0), false), (Some(7), true)] {
            let doing = Doing { awaited, ended };
            let found = sent(Frame::Doing(doing));
            assert!(matches!(found, Some(Frame::Doing(found)) if found == doing), "{found:?}");
        }
        let mut report = Endings { failure: None, ends: vec![] };
        for (rank, error) in [(6, None), (4, Some("disk \"full\"\n")), (2, None), (5, Some("disk \"full\"\n"))] {
            report.add(rank, End { error: error.map(str::to_string), is_input: error.is_some() });
        }
        assert_eq!(report.ends.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [2, 4]);
        for failure in [None, Some(RankFailure { rank: 3, reason: "naïve".into() })] {
            let report = Endings { failure, ends: report.ends.clone() };
            let ended = sent(Frame::Ended(report.clone()));
            assert!(matches!(&ended, Some(Frame::Ended(found)) if *found == report), "{ended:?}");
            let over = sent(Frame::Over(report.clone()));
            assert!(matches!(&over, Some(Frame::Over(found)) if *found == report), "{over:?}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let packet = Packet::Parcel { tag: Tag::zeroed(), parcel: Buffer::from_slice(&[1f32; 3]).into() };
        let (header, _) = Frame::Packet { stream: 1, packet }.pack(100);
        assert!(Frame::unpack(header, Buffer::from_slice(&[0; 11])).is_none());
        assert!(Frame::unpack(Header { kind: 77, ..header }, Buffer::from_slice(&[0; 12])).is_none());
        assert!(Frame::unpack(Header { fields: [3, 77], ..header }, Buffer::from_slice(&[0; 12])).is_none());
        for kind in [SPLIT, ENDED, OVER] {
            assert!(Frame::unpack(Header { kind, ..header }, Buffer::from_slice(&[0; 12])).is_none());
        }
    }
}
