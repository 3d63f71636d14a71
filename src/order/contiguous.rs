//! stub
use crate::layout::Batch;
use crate::order::{Run, TokenOrder};
/// stub
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contiguous;
impl TokenOrder for Contiguous {
    const NAME: &'static str = "contiguous";
    type Table = ();
    fn table<B: Batch>(_: &B, _: usize) {}
    fn rows<B: Batch>(_: &B, _: &(), _: usize, _: usize) -> usize {
        todo!()
    }
    fn runs<B: Batch>(_: &B, _: &(), _: usize, _: usize, _: impl FnMut(Run)) {
        todo!()
    }
    fn token<B: Batch>(_: &B, _: &(), _: usize, _: usize, _: usize) -> usize {
        todo!()
    }
    fn locate<B: Batch>(_: &B, _: &(), _: usize, _: usize) -> (usize, usize) {
        todo!()
    }
}
