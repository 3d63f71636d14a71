//! The float64 oracle: attention, rotary embedding and roll from first principles.
//!
//! It shares no code with what it judges: no bands, no tiles, no orders. A mask is a predicate `(query, key) -> bool`.
