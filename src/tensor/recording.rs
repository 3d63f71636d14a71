//! What devices keep of work that comes again.

use std::any::Any;
use std::fmt;

/// What a device keeps of work that comes again: see [`Device::repeat`](crate::tensor::Device::repeat).
#[derive(Default)]
pub struct Recording(Option<Box<dyn Any + Send + Sync>>);

impl Recording {
    /// What is kept, if it is of this type.
    #[cfg(feature = "cuda")]
    pub(crate) fn get<T: Any>(&self) -> Option<&T> {
        self.0.as_ref()?.downcast_ref()
    }

    /// Keeps this, and nothing of before.
    #[cfg(feature = "cuda")]
    pub(crate) fn set<T: Any + Send + Sync>(&mut self, kept: T) {
        self.0 = Some(Box::new(kept));
    }

    /// Keeps nothing.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Recording" } else { "Recording(nothing)" })
    }
}
