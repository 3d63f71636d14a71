//! Roll: every token takes the value of a neighbour in its document.

use super::Document;

/// Moves the rows of `x` `[tokens, features]` by `shift` positions within the valid tokens of each document, as
/// `torch.roll` counts: with `shift` -1 a token takes the value of the token after it. Where the document has no such
/// token, and in padding, the row is `fill`.
///
/// # Panics
/// If `x` is not `features` values per stored token.
pub fn roll<T: Copy>(x: &[T], features: usize, documents: &[Document], shift: i64, fill: T) -> Vec<T> {
    let tokens: usize = documents.iter().map(|document| document.stored).sum();
    assert_eq!(x.len(), tokens * features, "{tokens} tokens of {features} features");
    let mut rolled = vec![fill; x.len()];
    for document in documents {
        for position in 0..document.valid {
            let source = position as i64 - shift;
            if (0..document.valid as i64).contains(&source) {
                let (to, from) = (document.start + position, document.start + source as usize);
                for feature in 0..features {
                    rolled[to * features + feature] = x[from * features + feature];
                }
            }
        }
    }
    rolled
}

#[cfg(test)]
mod tests {
    use super::super::documents;
    use super::*;

    #[test]
    fn stays_within_documents() {
        let x: Vec<i32> = (1..=24).collect();
        let documents = documents(&[8, 16], &[8, 16]);
        let expected: Vec<i32> = (2..=8).chain([0]).chain(10..=24).chain([0]).collect();
        assert_eq!(roll(&x, 1, &documents, -1, 0), expected);
    }

    #[test]
    fn padding_is_neither_source_nor_target() {
        let documents = documents(&[2, 0, 3], &[4, 1, 3]);
        let x = [1, 2, 98, 99, 97, 5, 6, 7];
        assert_eq!(roll(&x, 1, &documents, -1, -7), [2, -7, -7, -7, -7, 6, 7, -7]);
        assert_eq!(roll(&x, 1, &documents, 2, 0), [0, 0, 0, 0, 0, 0, 0, 5]);
        assert_eq!(roll(&x, 1, &documents, 0, 0), [1, 2, 0, 0, 0, 5, 6, 7]);
        assert_eq!(roll(&x, 1, &documents, 9, 3), [3; 8]);
    }

    #[test]
    fn features_stay_together() {
        assert_eq!(roll(&[1, 2, 3, 4, 5, 6], 2, &documents(&[3], &[3]), 1, 0), [0, 0, 1, 2, 3, 4]);
    }
}
