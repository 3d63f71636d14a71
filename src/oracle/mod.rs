//! The float64 oracle: attention, rotary embedding and roll from first principles.
//!
//! It shares no code with what it judges: no bands, no tiles, no orders. A mask is a predicate `(query, key) -> bool`
//! over tokens, everything is dense, in `f64`, and written straight from the definition. Slow on purpose: a batch of
//! 600 tokens and 4 heads takes well under a second in a debug build; it is not meant for more.
//!
//! ```
//! use context_parallel::oracle::{Heads, DenseAttention, attention, causal, documents};
//!
//! let documents = documents(&[2, 1], &[2, 1]);
//! let attends = causal(&documents);
//! let heads = Heads { query: 1, key_value: 1, qk_dim: 1, v_dim: 1, scale: 1.0 };
//! let (q, k, v) = (&[0.0; 3], &[0.0; 3], &[1.0, 3.0, 5.0]);
//! let problem = DenseAttention { tokens: 3, heads, q, k, v, attends: &attends };
//! assert_eq!(attention(&problem).out, [1.0, 2.0, 5.0]);
//! ```

mod answer;
mod attention;
mod error;
mod mask;
mod roll;
mod rotary;

pub use answer::{Answer, NAMES};
pub use attention::{DenseAttention, DenseGradients, DenseOutput, Heads, attention, attention_backward};
pub use error::{F32_BOUND, F64_BOUND, allowed, norm, relative_error};
pub use mask::{Document, Rectangle, attends, causal, documents, full, prefix, rectangles, window};
pub use roll::roll;
pub use rotary::{Rotation, Stretch};
