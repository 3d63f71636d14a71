//! Plans: what each rank computes and sends, made from mask and order without communication.

mod piece;

pub use piece::Piece;
