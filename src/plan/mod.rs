//! Plans: what each rank computes and sends, made from mask and order without communication.

mod piece;
mod tile;

pub use piece::Piece;
pub use tile::{tile, touched};
