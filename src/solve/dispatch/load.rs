//! What a rank has to compute, hold, receive and send.

/// What a rank has of a span, or of the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) area: u128,
    pub(super) rows: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl Load {
    pub(super) fn add(&mut self, other: &Load) {
        self.area += other.area;
        self.rows += other.rows;
        self.received += other.received;
        self.sent += other.sent;
    }

    pub(super) fn subtract(&mut self, other: &Load) {
        self.area -= other.area;
        self.rows -= other.rows;
        self.received -= other.received;
        self.sent -= other.sent;
    }
}
