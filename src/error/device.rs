//! Errors of devices.

use thiserror::Error;

/// What went wrong on a device. Ops do not say so themselves: it comes out where a program next waits for the device
/// ([`Device::read`](crate::tensor::Device::read)).
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("the device failed in {op}: {reason}; what was computed since then is not to be trusted")]
pub struct DeviceError {
    /// The op.
    pub op: &'static str,
    /// What the device says.
    pub reason: String,
}
