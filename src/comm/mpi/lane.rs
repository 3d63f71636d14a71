//! What is on its way to one rank.

use std::collections::VecDeque;

use ::mpi::topology::SimpleCommunicator;

use super::engine::{BYTES, HEADER};
use super::frame::Frame;
use super::transfer::InFlight;
use crate::tensor::Buffer;

/// Transfers to one rank that MPI has at a time. Each is asked after in every turn of the engine, so with more of them
/// a turn, and with it news of a failure, would take ever longer the faster a rank sends.
const WINDOW: usize = 128;

/// Frames to one rank, in the order in which they were handed over; a failure goes before those that wait.
#[derive(Default)]
pub(super) struct Lane {
    started: Vec<InFlight>,
    waiting: VecDeque<Frame>,
}

impl Lane {
    pub(super) fn is_empty(&self) -> bool {
        self.started.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, frame: Frame) {
        match frame {
            Frame::Failed(_) => self.waiting.push_front(frame),
            _ => self.waiting.push_back(frame),
        }
    }

    /// Something has failed: nobody waits for messages between ranks any more.
    pub(super) fn give_up(&mut self) {
        self.waiting.retain(|frame| !matches!(frame, Frame::Packet { .. }));
    }

    /// Frees what is sent and starts what there is room for; true if anything happened. Messages go to rank `to` of
    /// `comm` in parts of at most `part` bytes.
    pub(super) fn advance(&mut self, comm: &SimpleCommunicator, to: i32, part: usize) -> bool {
        let mut moved = false;
        self.started.retain_mut(|transfer| {
            moved |= transfer.advance();
            !transfer.is_complete()
        });
        while let Some(frame) = self.next() {
            let (header, bytes) = frame.pack(part);
            let header = Buffer::from_slice(bytemuck::bytes_of(&header));
            self.started.push(InFlight::send(comm, to, HEADER, header, usize::MAX));
            if !bytes.is_empty() {
                self.started.push(InFlight::send(comm, to, BYTES, bytes, part));
            }
            moved = true;
        }
        moved
    }

    /// The next frame, if it may go now.
    fn next(&mut self) -> Option<Frame> {
        let is_urgent = matches!(self.waiting.front(), Some(Frame::Failed(_)));
        if is_urgent || self.started.len() < WINDOW { self.waiting.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::mailbox::RankFailure;
    use super::super::super::wire::{NoteKind, Packet};
    use super::*;

    #[test]
    fn a_failure_goes_first_and_ends_messages_between_ranks() {
        let packet =
            |stream| Frame::Packet { stream, packet: Packet::Note { kind: NoteKind::Barrier, entries: vec![] } };
        let mut lane = Lane::default();
        lane.push(packet(1));
        lane.push(Frame::Ask);
        lane.push(packet(2));
        lane.push(Frame::Failed(RankFailure { rank: 3, reason: "lost".into() }));
        lane.push(Frame::Alive);
        assert!(matches!(lane.next(), Some(Frame::Failed(_))));
        assert!(matches!(lane.next(), Some(Frame::Packet { stream: 1, .. })), "else in order");
        lane.give_up();
        assert!(matches!(lane.next(), Some(Frame::Ask)) && matches!(lane.next(), Some(Frame::Alive)));
        assert!(lane.next().is_none() && lane.is_empty());
    }
}
