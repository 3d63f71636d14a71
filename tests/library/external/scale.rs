//! How cases are scaled down: the one rule.

/// Sequences and windows are divided by one number, and head counts by another that keeps the query heads of a
/// key/value head as they are. Batch and head dimensions stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Divides tokens.
    pub tokens: usize,
    /// Query heads that are left at least, if there are as many.
    pub heads: usize,
}

impl Scale {
    /// As in the reference.
    pub const FULL: Scale = Scale { tokens: 1, heads: usize::MAX };

    /// A length, a boundary of a range, a stripe: rounded down, so that neighbours stay neighbours.
    pub fn tokens(self, tokens: usize) -> usize {
        tokens / self.tokens
    }

    /// A window: rounded up, so that none vanishes.
    pub fn window(self, window: usize) -> usize {
        window.div_ceil(self.tokens)
    }

    /// Query and key/value heads, divided by the largest number that goes into both and leaves enough query heads.
    pub fn heads(self, (q_heads, kv_heads): (usize, usize)) -> (usize, usize) {
        let fits = |by: &usize| {
            q_heads.is_multiple_of(*by) && kv_heads.is_multiple_of(*by) && q_heads / by >= self.heads.min(q_heads)
        };
        let by = (1..=kv_heads).rev().find(fits).unwrap_or(1);
        (q_heads / by, kv_heads / by)
    }
}

#[test]
fn heads_keep_their_ratio() {
    let scale = Scale { tokens: 32, heads: 6 };
    let heads = |q, kv| scale.heads((q, kv));
    assert_eq!([heads(12, 12), heads(12, 2), heads(32, 32), heads(32, 4)], [(6, 6), (6, 1), (8, 8), (8, 1)]);
    assert_eq!([heads(128, 128), heads(64, 8), heads(16, 16), heads(4, 2)], [(8, 8), (8, 1), (8, 8), (4, 2)]);
    assert_eq!(Scale::FULL.heads((128, 128)), (128, 128));
    assert_eq!((scale.tokens(4096), scale.window(512), scale.window(1)), (128, 16, 1));
}
