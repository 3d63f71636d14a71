//! stub until merged
use crate::mask::Bands;
use crate::order::Run;
use crate::plan::Piece;
use std::ops::Range;
/// stub
pub fn tile(_q: &[(usize, Run)], _k: &[(usize, Run)], _bands: &Bands) -> Vec<Piece> {
    todo!()
}
/// stub
pub fn touched(_pieces: &[Piece]) -> Vec<Range<usize>> {
    todo!()
}
