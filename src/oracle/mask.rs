//! Masks as predicates `(query token, key token) -> bool`, written from their definitions.

use std::ops::Range;

use crate::mask::{Mask, SliceKind};

/// One document (or one sequence of a dense batch) in plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its first token.
    pub start: usize,
    /// Tokens that count.
    pub valid: usize,
    /// Tokens and padding.
    pub stored: usize,
}

/// Documents one after another, `valid[i]` tokens in `stored[i]` rows each.
pub fn documents(valid: &[usize], stored: &[usize]) -> Vec<Document> {
    assert_eq!(valid.len(), stored.len(), "as many valid as stored lengths");
    let mut start = 0;
    let mut documents = Vec::new();
    for (&valid, &stored) in valid.iter().zip(stored) {
        assert!(valid <= stored, "a document of {valid} tokens in {stored} rows");
        documents.push(Document { start, valid, stored });
        start += stored;
    }
    documents
}

/// Of each token, its document and its position in it; nothing for padding.
fn places(documents: &[Document]) -> Vec<Option<(usize, usize)>> {
    let mut places = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        for position in 0..document.stored {
            places.push((position < document.valid).then_some((index, position)));
        }
    }
    places
}

/// Two tokens of one document, as (document, query position, key position).
fn within(documents: &[Document]) -> impl Fn(usize, usize) -> Option<(usize, usize, usize)> + use<> {
    let places = places(documents);
    move |query, key| match (places[query], places[key]) {
        (Some((document, query)), Some((other, key))) if document == other => Some((document, query, key)),
        _ => None,
    }
}

/// Every token of the document sees every other.
pub fn full(documents: &[Document]) -> impl Fn(usize, usize) -> bool + use<> {
    let within = within(documents);
    move |query, key| within(query, key).is_some()
}

/// A token sees itself and the tokens of its document before it.
pub fn causal(documents: &[Document]) -> impl Fn(usize, usize) -> bool + use<> {
    let within = within(documents);
    move |query, key| within(query, key).is_some_and(|(_, query, key)| key <= query)
}

/// A token sees itself, `left` tokens before it and `right` after it; `None` is unlimited.
pub fn window(
    documents: &[Document],
    left: Option<usize>,
    right: Option<usize>,
) -> impl Fn(usize, usize) -> bool + use<> {
    let within = within(documents);
    move |query, key| {
        within(query, key).is_some_and(|(_, query, key)| match key <= query {
            true => left.is_none_or(|left| query - key <= left),
            false => right.is_none_or(|right| key - query <= right),
        })
    }
}

/// Causal, and every token of document `i` sees its first `lengths[i]` tokens.
pub fn prefix(documents: &[Document], lengths: &[usize]) -> impl Fn(usize, usize) -> bool + use<> {
    assert_eq!(documents.len(), lengths.len(), "one prefix length per document");
    let (within, lengths) = (within(documents), lengths.to_vec());
    move |query, key| within(query, key).is_some_and(|(document, query, key)| key <= query || key < lengths[document])
}

/// A rectangle of queries and keys, whole or with corners cut off along a diagonal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rectangle {
    /// Queries, tokens of the batch.
    pub queries: Range<usize>,
    /// Keys, tokens of the batch.
    pub keys: Range<usize>,
    /// The last query sees the last key; each query before it one key less at the end.
    pub cut_upper: bool,
    /// The first query sees the first key; each query after it one key less at the start.
    pub cut_lower: bool,
}

/// What any of the rectangles contains, across documents too, but never padding.
pub fn rectangles(documents: &[Document], rectangles: &[Rectangle]) -> impl Fn(usize, usize) -> bool + use<> {
    let (places, rectangles) = (places(documents), rectangles.to_vec());
    move |query, key| {
        places[query].is_some()
            && places[key].is_some()
            && rectangles.iter().any(|rectangle| {
                let Rectangle { queries, keys, cut_upper, cut_lower } = rectangle;
                queries.contains(&query)
                    && keys.contains(&key)
                    && (!cut_upper || keys.end - key >= queries.end - query)
                    && (!cut_lower || key - keys.start >= query - queries.start)
            })
    }
}

/// The definition of a mask.
///
/// # Panics
/// If there is not a prefix length per document.
pub fn attends(mask: &Mask, documents: &[Document]) -> Box<dyn Fn(usize, usize) -> bool> {
    match mask {
        Mask::Full => Box::new(full(documents)),
        Mask::Causal => Box::new(causal(documents)),
        Mask::Window { left, right } => Box::new(window(documents, *left, *right)),
        Mask::Prefix(lengths) => Box::new(prefix(documents, lengths)),
        Mask::Slices(slices) => {
            let rectangle = |slice: &crate::mask::Slice| Rectangle {
                queries: slice.q.clone(),
                keys: slice.k.clone(),
                cut_upper: matches!(slice.kind, SliceKind::Causal | SliceKind::BiCausal),
                cut_lower: matches!(slice.kind, SliceKind::InvCausal | SliceKind::BiCausal),
            };
            Box::new(rectangles(documents, &slices.iter().map(rectangle).collect::<Vec<_>>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attended cells as rows of `#` and `.`.
    fn drawn(tokens: usize, attends: impl Fn(usize, usize) -> bool) -> Vec<String> {
        (0..tokens).map(|q| (0..tokens).map(|k| if attends(q, k) { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn documents_do_not_see_each_other_and_padding_is_not_seen() {
        let documents = documents(&[2, 0, 1], &[3, 0, 2]);
        assert_eq!(documents[2], Document { start: 3, valid: 1, stored: 2 });
        assert_eq!(drawn(5, full(&documents)), ["##...", "##...", ".....", "...#.", "....."]);
        assert_eq!(drawn(5, causal(&documents)), ["#....", "##...", ".....", "...#.", "....."]);
    }

    #[test]
    fn windows() {
        let documents = documents(&[4], &[4]);
        assert_eq!(drawn(4, window(&documents, Some(1), Some(0))), ["#...", "##..", ".##.", "..##"]);
        assert_eq!(drawn(4, window(&documents, Some(0), Some(0))), ["#...", ".#..", "..#.", "...#"]);
        assert_eq!(drawn(4, window(&documents, Some(0), Some(2))), ["###.", ".###", "..##", "...#"]);
        assert_eq!(drawn(4, window(&documents, None, Some(0))), drawn(4, causal(&documents)));
        assert_eq!(drawn(4, window(&documents, None, None)), drawn(4, full(&documents)));
    }

    #[test]
    fn prefixes() {
        let documents = documents(&[3, 2], &[3, 2]);
        assert_eq!(drawn(5, prefix(&documents, &[2, 0])), ["##...", "##...", "###..", "...#.", "...##"]);
    }

    #[test]
    fn rectangles_with_cut_corners() {
        let documents = documents(&[2, 3], &[2, 3]);
        let shape = |cut_upper, cut_lower| {
            let rectangle = Rectangle { queries: 1..4, keys: 0..4, cut_upper, cut_lower };
            drawn(5, rectangles(&documents, &[rectangle]))
        };
        assert_eq!(shape(false, false), [".....", "####.", "####.", "####.", "....."]);
        assert_eq!(shape(true, false), [".....", "##...", "###..", "####.", "....."]);
        assert_eq!(shape(false, true), [".....", "####.", ".###.", "..##.", "....."]);
        assert_eq!(shape(true, true), [".....", "##...", ".##..", "..##.", "....."]);
    }
}
