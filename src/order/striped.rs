//! stub
use crate::layout::Batch;
use crate::order::{Run, TokenOrder};
/// stub
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Striped<const STRIPE: usize = 1>;
impl<const STRIPE: usize> TokenOrder for Striped<STRIPE> {
    const NAME: &'static str = "striped";
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
