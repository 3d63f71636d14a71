//! How much memory training or evaluation will need, before it begins.

use context_parallel::model::{Config, ParameterList};

/// What decides over memory besides the model.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Rows of a rank: its tokens of those that run at once.
    pub rows: usize,
    pub ranks: usize,
    /// Bytes of an activation, and of an element of sums.
    pub elem: usize,
    pub acc: usize,
    pub recompute: bool,
}

/// Bytes of one rank, about: weights and what belongs to them, and the activations of a micro-batch.
///
/// With `P` parameters, every rank holds `P (4 acc + elem)`: master weights, two moments and gradients in the
/// accumulation type, and the working copy; on several ranks up to `2 P acc` more while the gradients are summed: what
/// is sent, and what is received. Loading comes before moments and gradients, and takes less than they do. A row leaves
/// `4 h + 2 q + 2 kv + 2 f` elements in a block: its input, both norms and the residual stream after attention (`4 h`),
/// queries and attention output (`2 q`), keys and values (`2 kv`), gate and up (`2 f`), and of sums the attention
/// output again (`q`); about as much as one block once more passes through the backward pass of a block. With
/// recomputation a block leaves its input (`h`) only. A depth of multi-token prediction is a block, its output (`h`),
/// and id, label and weight of a row (20 bytes); gradients of the main loss and of the depth's input stand beside its
/// backward pass (`3 h`). Logits of at most 1024 rows are in memory at a time, twice.
pub fn training(config: &Config, load: Demand) -> u64 {
    let Demand { rows, ranks, elem, acc, recompute } = load;
    // No configuration and no number of rows is too large to be told that it is.
    let [rows, elem, acc] = [rows, elem, acc].map(|count| count as u128);
    let parameters = ParameterList::new(config).elements() as u128;
    let sums = if ranks > 1 { 2 * parameters * acc } else { 0 };
    let weights = parameters * (4 * acc + elem) + sums;
    let (h, block) = (config.hidden_size as u128, block(config, elem, acc));
    let layers = match recompute {
        true => config.layers as u128 * h * elem + 2 * block,
        false => (config.layers as u128 + 1) * block,
    };
    let mtp = match config.mtp_depth as u128 {
        0 => 0,
        depth => depth * (if recompute { h * elem } else { block } + h * elem + 20) + 3 * h * elem,
    };
    let logits = 2 * rows.min(1024) * config.vocab_size as u128 * elem;
    let rows = rows.saturating_mul(layers + mtp + 3 * h * elem);
    u64::try_from(rows.saturating_add(weights + logits)).unwrap_or(u64::MAX)
}

/// Bytes of a row in a block.
fn block(config: &Config, elem: u128, acc: u128) -> u128 {
    let sizes = [config.hidden_size, config.query_size(), config.kv_size(), config.intermediate_size];
    let [h, q, kv, f] = sizes.map(|size| size as u128);
    (4 * h + 2 * q + 2 * kv + 2 * f) * elem + q * acc
}

/// Bytes of one rank, about, for forward passes: `P elem` of weights, and what is there beside them, first at loading
/// and then in a pass, whichever is more. At loading that is a copy of the largest parameter; in a pass an output layer
/// that is tied once more, what blocks leave as in [`training`], and logits. Where these are kept (`kept` tokens of all
/// ranks at once), a rank has those of its rows twice and those of all tokens twice, to gather them.
pub fn evaluation(config: &Config, load: Demand, kept: Option<usize>) -> u64 {
    let Demand { rows, elem, acc, .. } = load;
    let [rows, elem, acc, vocab] = [rows, elem, acc, config.vocab_size].map(|count| count as u128);
    let hidden = config.hidden_size as u128;
    let tied = if config.tie_word_embeddings { vocab * hidden } else { 0 };
    let parameters = ParameterList::new(config);
    let largest = parameters.iter().map(|(_, spec)| spec.len() as u128).max().unwrap_or(0);
    let layers = (config.layers as u128).saturating_mul(block(config, elem, acc)) + 3 * hidden * elem;
    let logits = match kept {
        None => 2 * rows.min(1024),
        Some(tokens) => 2 * (rows + tokens as u128),
    };
    let pass = rows.saturating_mul(layers).saturating_add(logits.saturating_mul(vocab * elem));
    let beside = pass.saturating_add(tied * elem).max(largest * elem);
    u64::try_from(beside.saturating_add(parameters.elements() as u128 * elem)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use context_parallel::model::Sizes;

    #[test]
    fn grows_with_what_it_depends_on() {
        let config = Config::preset("tiny").unwrap();
        let load = Demand { rows: 1024, ranks: 2, elem: 4, acc: 4, recompute: false };
        let bytes = |load| training(&config, load);
        let weights = ParameterList::new(&config).elements() as u64 * 4 * 7;
        assert!(bytes(load) > weights && bytes(Demand { rows: 1 << 39, ..load }) / bytes(load) > 1000);
        assert!(bytes(Demand { recompute: true, ..load }) < bytes(load));
        assert!(bytes(Demand { elem: 2, ..load }) < bytes(load));
        for recompute in [false, true] {
            let load = Demand { recompute, ..load };
            let [one, two] = [1, 2].map(|depth| training(&config.clone().with_mtp_depth(depth), load));
            assert!(bytes(load) < one && one < two);
        }
        assert_eq!(bytes(Demand { rows: usize::MAX, ..load }), u64::MAX);
        assert!(bytes(Demand { ranks: 1, ..load }) < bytes(load), "nothing is summed over one rank");
    }

    #[test]
    fn evaluation_needs_weights_once_and_all_logits_that_are_kept() {
        let config = Config::preset("tiny").unwrap();
        let load = Demand { rows: 64, ranks: 2, elem: 4, acc: 4, recompute: false };
        let weights = ParameterList::new(&config).elements() as u64 * 4;
        let loss = evaluation(&config, load, None);
        assert!(loss > weights && loss < training(&config, load));
        let kept = evaluation(&config, load, Some(128));
        assert_eq!(kept - loss, (2 * (64 + 128) - 2 * 64) * config.vocab_size as u64 * 4);
        assert_eq!(evaluation(&config, Demand { rows: usize::MAX, ..load }, Some(usize::MAX)), u64::MAX);
        // A large vocabulary and hardly a token: most is needed while the embedding is loaded.
        let sizes = Sizes { vocab_size: 9999, hidden_size: 64, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1 };
        let config = Config::llama(sizes).unwrap();
        let weights = ParameterList::new(&config).elements() as u64;
        for elem in [2, 4] {
            let load = Demand { rows: 1, elem, ..load };
            assert_eq!(evaluation(&config, load, None), (weights + 9999 * 64) * elem as u64);
            assert!(training(&config, load) > (weights + 9999 * 64) * load.acc as u64);
        }
    }
}
