//! Communicators around another one: they count, delay, fail or go by way of host memory, and leave what is exchanged
//! alone.

/// What a decorator does as the communicator in its field `inner` does.
macro_rules! as_inner {
    () => {
        fn rank(&self) -> usize {
            self.inner.rank()
        }

        fn size(&self) -> usize {
            self.inner.size()
        }

        fn global_rank(&self, rank: usize) -> usize {
            self.inner.global_rank(rank)
        }

        fn abort(&self, reason: &str) {
            self.inner.abort(reason);
        }

        fn check(&self) -> crate::error::Result<()> {
            self.inner.check()
        }

        fn steps(&self) -> u64 {
            self.inner.steps()
        }
    };
}

pub mod faults;
pub mod link;
pub mod staged;
pub mod traffic;
