//! How a message looks on the wire: a header of fixed size that says what it is and how many bytes follow.

use bytemuck::{Pod, Zeroable};

use super::super::Parcel;
use super::super::mailbox::Failure;
use super::super::member::Message;
use super::super::tag::Tag;
use crate::tensor::{Buffer, DType, Host};

/// What a process tells another.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message between ranks.
    Message { stream: u64, message: Message },
    /// A rank failed.
    Failed(Failure),
    /// The sender's process lives; its rank may be computing, or wait for another rank.
    Alive { awaited: Option<usize> },
    /// The sender's rank has ended, and sends nothing after this.
    Ended(End),
}

/// How a rank ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// What it says of its error, if it has one.
    pub(super) error: Option<String>,
    /// Whether that is the user's input.
    pub(super) is_input: bool,
}

/// The first part of a message.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Header {
    kind: u64,
    stream: u64,
    /// Depends on the kind.
    fields: [u64; 3],
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
            Frame::Message { stream, message: Message::Parcel { tag, parcel } } => {
                of_parcel = tag;
                let dtype = DTYPES.iter().position(|&dtype| dtype == parcel.dtype).unwrap_or(DTYPES.len());
                let (len, bytes) = (parcel.len, parcel.bytes());
                (PARCEL, stream, [len as u64, dtype as u64, 0], Buffer::from_storage(parcel.storage, bytes))
            }
            Frame::Message { stream, message: Message::Barrier } => (BARRIER, stream, [0; 3], nothing()),
            Frame::Message { stream, message: Message::Split { color, key, group } } => {
                (SPLIT, stream, [color as u64, key as u64, group], nothing())
            }
            Frame::Failed(Failure { rank, reason }) => {
                (FAILED, 0, [rank as u64, 0, 0], Buffer::from_slice(reason.as_bytes()))
            }
            Frame::Alive { awaited } => {
                let number = awaited.map_or(0, |rank| rank as u64 + 1);
                (ALIVE, 0, [number, 0, 0], nothing())
            }
            Frame::Ended(End { error, is_input }) => {
                let failed = u64::from(error.is_some());
                (ENDED, 0, [failed, u64::from(is_input), 0], Buffer::from_slice(error.unwrap_or_default().as_bytes()))
            }
        };
        (Header { kind, stream, fields, tag: of_parcel, bytes: bytes.len() as u64, part: part as u64 }, bytes)
    }

    /// What a header and the bytes that came after it say; `None` if this is not of this program's making.
    pub(super) fn unpack(header: Header, bytes: Buffer<u8>) -> Option<Frame> {
        let Header { kind, stream, fields: [a, b, c], tag, .. } = header;
        let text = |bytes: Buffer<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let message = |message| Some(Frame::Message { stream, message });
        match kind {
            PARCEL => {
                let (len, dtype) = (a as usize, *DTYPES.get(b as usize)?);
                if len.checked_mul(dtype.size()) != Some(bytes.len()) {
                    return None;
                }
                let parcel = Parcel::<Host> { storage: bytes.into_storage(), len, dtype };
                message(Message::Parcel { tag, parcel })
            }
            BARRIER => message(Message::Barrier),
            SPLIT => message(Message::Split { color: a as usize, key: b as usize, group: c }),
            FAILED => Some(Frame::Failed(Failure { rank: a as usize, reason: text(bytes) })),
            ALIVE => Some(Frame::Alive { awaited: a.checked_sub(1).map(|rank| rank as usize) }),
            ENDED => Some(Frame::Ended(End { error: (a == 1).then(|| text(bytes)), is_input: b == 1 })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Operation;

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
        let message = Message::Parcel { tag, parcel: Buffer::from_slice(&values).into() };
        let Some(Frame::Message { stream: 9, message: Message::Parcel { tag: found, parcel } }) =
            sent(Frame::Message { stream: 9, message })
        else {
            panic!("not a parcel");
        };
        assert_eq!(found, tag);
        assert_eq!((parcel.len(), parcel.dtype()), (4, DType::F64));
        let found = parcel.open::<f64>().unwrap();
        assert!(found.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits()));
        for dtype in [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::I64, DType::I32, DType::U8] {
            assert!(DTYPES.contains(&dtype), "{dtype}");
        }
    }

    #[test]
    fn notes_keep_their_numbers() {
        let big = usize::MAX;
        let message = Message::Split { color: big, key: big - 1, group: u64::MAX - 2 };
        let split = sent(Frame::Message { stream: 3, message });
        let Some(Frame::Message { stream: 3, message: Message::Split { color, key, group } }) = split else {
            panic!("{split:?}");
        };
        assert_eq!((color, key, group), (big, big - 1, u64::MAX - 2), "more than an i32 holds");
        let failed = sent(Frame::Failed(Failure { rank: 5, reason: "naïve".into() }));
        assert!(matches!(&failed, Some(Frame::Failed(f)) if f.rank == 5 && f.reason == "naïve"), "{failed:?}");
        for awaited in [None, Some(0), Some(7)] {
            let alive = sent(Frame::Alive { awaited });
            assert!(matches!(alive, Some(Frame::Alive { awaited: found }) if found == awaited), "{alive:?}");
        }
        for error in [None, Some(String::new()), Some("disk full".to_string())] {
            let end = End { is_input: error.as_deref() == Some("disk full"), error };
            let ended = sent(Frame::Ended(end.clone()));
            assert!(matches!(&ended, Some(Frame::Ended(found)) if *found == end), "{ended:?}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let message = Message::Parcel { tag: Tag::zeroed(), parcel: Buffer::from_slice(&[1f32; 3]).into() };
        let (header, _) = Frame::Message { stream: 1, message }.pack(100);
        assert!(Frame::unpack(header, Buffer::from_slice(&[0; 11])).is_none());
        assert!(Frame::unpack(Header { kind: 77, ..header }, Buffer::from_slice(&[0; 12])).is_none());
        assert!(Frame::unpack(Header { fields: [3, 77, 0], ..header }, Buffer::from_slice(&[0; 12])).is_none());
    }
}
