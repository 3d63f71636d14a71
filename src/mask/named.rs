//! Named masks, as slices that share no cell (`magi.md` sections 2.5 and 2.7 list them as MagiAttention's examples do).
//!
//! All take tokens of the batch. Causal, full, window and prefix masks are variants of [`Mask`] themselves.

use std::ops::Range;

use crate::error::MaskError;
use crate::mask::{Band, Mask, Slice, SliceKind};

fn full(q: &Range<usize>, k: Range<usize>) -> Slice {
    Slice { q: q.clone(), k, kind: SliceKind::Full }
}

fn causal(q: &Range<usize>, k: Range<usize>) -> Slice {
    Slice { q: q.clone(), k, kind: SliceKind::Causal }
}

/// Several answers to one question, in one document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The question.
    pub tokens: Range<usize>,
    /// The answers, which do not see each other.
    pub answers: Vec<Range<usize>>,
}

/// Every answer sees its question and, causally, itself.
pub fn shared_question(questions: &[Question]) -> Mask {
    let slices = |question: &Question| {
        let answers = question
            .answers
            .iter()
            .flat_map(|answer| [full(answer, question.tokens.clone()), causal(answer, answer.clone())]);
        std::iter::once(causal(&question.tokens, question.tokens.clone())).chain(answers).collect::<Vec<_>>()
    };
    Mask::Slices(questions.iter().flat_map(slices).collect())
}

/// Causal within each document, but the last one, which sees causally everything before it. Documents are in order and
/// touch.
pub fn causal_blockwise(documents: &[Range<usize>]) -> Mask {
    let first = documents.first().map_or(0, |document| document.start);
    let last = documents.len().saturating_sub(1);
    let slice = |(index, document): (usize, &Range<usize>)| {
        causal(document, if index == last { first } else { document.start }..document.end)
    };
    Mask::Slices(documents.iter().enumerate().map(slice).collect())
}

/// What the last block of all sees under [`block_causal`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LastBlock {
    /// Itself and the blocks of its document before it, as every block.
    #[default]
    AsOthers,
    /// Itself and everything before it.
    SeesAll,
}

/// Each block of `block` tokens of a document sees itself and all blocks of the document before it. Documents are in
/// order and touch.
///
/// # Errors
/// [`MaskError::EmptyBlock`] for a `block` of 0.
pub fn block_causal(documents: &[Range<usize>], block: usize, last: LastBlock) -> Result<Mask, MaskError> {
    if block == 0 {
        return Err(MaskError::EmptyBlock);
    }
    let mut slices = Vec::new();
    for document in documents {
        for start in document.clone().step_by(block) {
            let end = start.saturating_add(block).min(document.end);
            slices.push(full(&(start..end), document.start..end));
        }
    }
    if let (LastBlock::SeesAll, Some(slice), Some(first)) = (last, slices.last_mut(), documents.first()) {
        slice.k.start = first.start;
    }
    Ok(Mask::Slices(slices))
}

/// A node of a tree of continuations (roll-outs of reinforcement learning).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its tokens.
    pub tokens: Range<usize>,
    /// The node that it continues, by its index, which is smaller than this node's.
    pub parent: Option<usize>,
}

/// Each node sees all of its ancestors and, causally, itself.
///
/// # Errors
/// [`MaskError::Parent`] if a parent does not come before its node.
pub fn prefix_tree(nodes: &[Node]) -> Result<Mask, MaskError> {
    let mut slices = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let mut child = index;
        while let Some(parent) = nodes[child].parent {
            if parent >= child {
                return Err(MaskError::Parent { node: child, parent });
            }
            slices.push(full(&node.tokens, nodes[parent].tokens.clone()));
            child = parent;
        }
        slices.push(causal(&node.tokens, node.tokens.clone()));
    }
    Ok(Mask::Slices(slices))
}

/// Blocks of queries and the blocks of keys that they see, which must not overlap.
pub fn block_sparse(pairs: &[(Range<usize>, Range<usize>)]) -> Mask {
    Mask::Slices(pairs.iter().map(|(q, k)| full(q, k.clone())).collect())
}

/// Causal text with images in it: the tokens of an image see each other and everything before the image. Images are in
/// order, inside the document, and do not overlap.
pub fn images_in_text(document: Range<usize>, images: &[Range<usize>]) -> Mask {
    let (mut slices, mut start) = (Vec::new(), document.start);
    for image in images {
        slices.push(causal(&(start..image.start), document.start..image.start));
        slices.push(full(image, document.start..image.end));
        start = image.end;
    }
    slices.push(causal(&(start..document.end), document.start..document.end));
    slices.retain(|slice| !slice.q.is_empty());
    Mask::Slices(slices)
}

/// A window of `left` tokens before each token and `right` after it (`None` is unlimited), and beside it the first
/// `global` tokens of the document, as far as `right` tokens after the token.
pub fn window_with_global(
    documents: &[Range<usize>],
    left: Option<usize>,
    right: Option<usize>,
    global: usize,
) -> Mask {
    let reach = |tokens: Option<usize>| tokens.and_then(|tokens| i64::try_from(tokens).ok()).unwrap_or(i64::MAX);
    let slices = |document: &Range<usize>| {
        let q = document.start as i64..document.end as i64;
        let split = document.start.saturating_add(global).min(document.end) as i64;
        let first = Band { q: q.clone(), k: q.start..split, d_lo: i64::MIN, d_hi: reach(right) };
        let window = Band { k: split..q.end, q, d_lo: -reach(left), d_hi: reach(right) };
        [first, window].into_iter().flat_map(|band| band.slices()).collect::<Vec<_>>()
    };
    Mask::Slices(documents.iter().flat_map(slices).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Dense;

    /// The mask attends just the cells of the predicate, each in one slice.
    fn attends(what: &str, mask: &Mask, tokens: usize, predicate: impl Fn(usize, usize) -> bool) {
        let bands = mask.lower(&Dense { batch: 1, seq: tokens }).unwrap_or_else(|error| panic!("{what}: {error}"));
        for q in 0..tokens {
            let mut keys = vec![false; tokens];
            for band in bands.as_slice() {
                band.keys(q as i64).for_each(|k| keys[k as usize] = true);
            }
            for (k, attended) in keys.into_iter().enumerate() {
                assert_eq!(attended, predicate(q, k), "{what}: query {q}, key {k}");
            }
        }
    }

    #[test]
    fn blocks_of_nothing_and_parents_after_their_nodes_are_refused() {
        assert_eq!(block_causal(&ranges(&[0, 4]), 0, LastBlock::AsOthers), Err(MaskError::EmptyBlock));
        let node = |tokens, parent| Node { tokens, parent };
        for parent in [1, 2, 9] {
            let nodes = [node(0..2, None), node(2..4, Some(parent)), node(4..5, Some(0))];
            assert_eq!(prefix_tree(&nodes), Err(MaskError::Parent { node: 1, parent }));
        }
    }

    fn ranges(ends: &[usize]) -> Vec<Range<usize>> {
        ends.windows(2).map(|ends| ends[0]..ends[1]).collect()
    }

    #[test]
    fn named_masks_are_what_they_say() {
        let questions = [
            Question { tokens: 0..4, answers: vec![4..7, 7..8] },
            Question { tokens: 8..10, answers: vec![10..15, 15..15, 15..20] },
        ];
        let part = |token: usize| [0..4, 4..7, 7..8, 8..10, 10..15, 15..20].iter().position(|r| r.contains(&token));
        let question = |q: usize, k: usize| (q < 8) == (k < 8) && matches!(part(k), Some(0 | 3));
        attends("shared question", &shared_question(&questions), 20, |q, k| {
            k <= q && (part(q) == part(k) || question(q, k))
        });

        let documents = ranges(&[0, 5, 6, 14, 20]);
        let same = |q: usize, k: usize| documents.iter().any(|d| d.contains(&q) && d.contains(&k));
        attends("causal blockwise", &causal_blockwise(&documents), 20, |q, k| k <= q && (same(q, k) || q >= 14));
        for (block, last_block) in
            [(1, LastBlock::AsOthers), (3, LastBlock::AsOthers), (3, LastBlock::SeesAll), (50, LastBlock::SeesAll)]
        {
            let block_end = |q: usize| {
                let document = documents.iter().find(|d| d.contains(&q)).unwrap();
                (document.start + (q - document.start) / block * block + block).min(document.end)
            };
            let last = |q: usize| last_block == LastBlock::SeesAll && block_end(q) == 20;
            attends("block causal", &block_causal(&documents, block, last_block).unwrap(), 20, |q, k| {
                k < block_end(q) && (same(q, k) || last(q))
            });
        }

        let node = |tokens, parent| Node { tokens, parent };
        let nodes =
            [node(0..3, None), node(3..5, Some(0)), node(5..9, Some(0)), node(9..10, Some(2)), node(10..12, None)];
        let of = |token: usize| nodes.iter().position(|node| node.tokens.contains(&token)).unwrap();
        let above =
            |q: usize, k: usize| std::iter::successors(Some(of(q)), |&at| nodes[at].parent).any(|at| at == of(k));
        attends("prefix tree", &prefix_tree(&nodes).unwrap(), 12, |q, k| k <= q && above(q, k));

        let pairs = [(0..4, 4..8), (4..8, 0..4), (8..12, 8..12)];
        let sparse = |q, k| pairs.iter().any(|(queries, keys)| queries.contains(&q) && keys.contains(&k));
        attends("block sparse", &block_sparse(&pairs), 12, sparse);

        let spans = [0..3, 3..4, 6..9, 11..12];
        for images in [&spans[..0], &spans[..1], &spans, &spans[3..]] {
            let image_end = |q: usize| images.iter().find(|image| image.contains(&q)).map_or(q + 1, |image| image.end);
            attends("images in text", &images_in_text(0..12, images), 12, |q, k| k < image_end(q));
        }
    }

    /// The sets of `magi.md` section 2.7: ends of documents, windows below a width, numbers of global tokens.
    #[test]
    fn windows_with_global_tokens() {
        let sets: [(&[usize], usize, &[usize]); 5] = [
            (&[0, 30], 10, &[1, 2, 5, 10, 15, 29]),
            (&[0, 10, 20, 40, 60, 100], 8, &[1, 3, 5, 8, 15]),
            (&[0, 5, 50, 53, 80], 12, &[2, 4, 10, 20, 50]),
            (&[0, 15, 30, 45, 60], 5, &[1, 7, 14, 15]),
            (&[0, 64], 15, &[1, 4, 16, 32, 63]),
        ];
        for (ends, width, globals) in sets {
            let (documents, tokens) = (ranges(ends), ends[ends.len() - 1]);
            let start: Vec<usize> = documents.iter().flat_map(|d| std::iter::repeat_n(d.start, d.len())).collect();
            let widths = || (0..width).map(Some).chain([None]);
            for (left, right) in widths().flat_map(|left| widths().map(move |right| (left, right))) {
                for &global in globals {
                    let mask = window_with_global(&documents, left, right, global);
                    let what = format!("{ends:?}, window {left:?} {right:?}, {global} global");
                    attends(&what, &mask, tokens, |q, k| {
                        let within = right.is_none_or(|right| k <= q + right);
                        let near = left.is_none_or(|left| k + left >= q) || k < start[q] + global;
                        start[q] == start[k] && within && near
                    });
                }
            }
        }
    }
}
