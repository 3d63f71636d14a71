//! Plans: what each rank computes and sends, made from mask and order alone; what would take long for all ranks, those
//! that plan together tell one another.
//!
//! A strategy writes a [`Program`] per rank: a short list of steps that the one executor walks through. Being data, a
//! program can be printed, counted ([`Program::rows_sent`]) and checked ([`check`]) before anything runs.

mod check;
mod piece;
mod program;
mod rows;
mod tile;
mod view;

pub use check::{check, check_rank};
pub use piece::Piece;
pub use program::{Content, Peers, Program, Step, Transfer, Wire};
pub use rows::RowSet;
pub use tile::{Block, TileCells, area_by_keys, tile, touched};
pub use view::View;
