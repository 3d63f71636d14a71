//! Communicators around another one: they count, delay or fail, and leave what is exchanged alone.

pub mod faults;
pub mod link;
pub mod traffic;
