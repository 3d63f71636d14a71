//! Which tokens a step sees, what is held out, and texts that are refused.

use super::super::documents::Separator;
use super::*;

fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn counting(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn text_labels_are_the_next_bytes_and_stay_in_the_training_part() {
    let content = counting(1000);
    let (_folder, path) = file(&content);
    let source = Source::Text(Text::read(&path, 16, 0.25).unwrap());
    let mut seen = vec![false; 1000];
    for step in 0..400 {
        let batch = source.batch(7, step, 0..4, 16);
        assert_eq!((&batch.lengths[..], batch.tokens.len(), batch.labels.len()), (&[16; 4][..], 64, 64));
        for (tokens, labels) in batch.tokens.chunks(16).zip(batch.labels.chunks(16)) {
            assert_eq!(tokens[1..], labels[..15]);
            let window: Vec<u8> = tokens.iter().chain(&labels[15..]).map(|&id| id as u8).collect();
            let at: Vec<usize> = (0..=733).filter(|&at| content[at..at + 17] == window[..]).collect();
            assert!(!at.is_empty(), "a window that is not in the first 750 bytes");
            at.into_iter().for_each(|at| seen[at] = true);
        }
    }
    assert!(seen[0] && seen[733], "the first and the last offset are reachable");
}

#[test]
fn a_step_depends_on_seed_and_step_and_not_on_how_it_is_cut() {
    let (_folder, path) = file(&counting(5000));
    for source in [Source::Text(Text::read(&path, 32, 0.0).unwrap()), Source::Recall(Recall::new(64, 32).unwrap())] {
        let whole = source.batch(3, 11, 0..6, 32);
        assert_eq!(whole, source.clone().batch(3, 11, 0..6, 32));
        let mut cut = source.batch(3, 11, 0..2, 32);
        let rest = source.batch(3, 11, 2..6, 32);
        cut.tokens.extend(rest.tokens);
        cut.labels.extend(rest.labels);
        assert_eq!((&whole.tokens, &whole.labels), (&cut.tokens, &cut.labels));
        assert_ne!(whole.tokens, source.batch(3, 12, 0..6, 32).tokens);
        assert_ne!(whole.tokens, source.batch(4, 11, 0..6, 32).tokens);
        assert_ne!(whole.tokens[..32], whole.tokens[32..64]);
    }
}

#[test]
fn which_tokens_a_step_sees_is_pinned() {
    let batch = Source::Recall(Recall::new(64, 8).unwrap()).batch(0, 0, 0..1, 8);
    // From a separate implementation of SplitMix64 and xoshiro256++.
    assert_eq!(batch.tokens, [7, 30, 40, 8, 1, 46, 9, 28]);
}

#[test]
fn recall_labels_repeat_the_first_half() {
    for seq in [2, 7, 8, 33] {
        let batch = Source::Recall(Recall::new(50, seq).unwrap()).batch(1, 2, 0..3, seq);
        for (tokens, labels) in batch.tokens.chunks(seq).zip(batch.labels.chunks(seq)) {
            for t in 0..seq {
                let expected = if t < seq / 2 { IGNORED } else { tokens[t - seq / 2] };
                assert_eq!(labels[t], expected, "position {t} of {seq}");
            }
        }
        assert_eq!(batch.counted(), 3 * (seq - seq / 2));
        assert!(batch.tokens.iter().all(|id| (0..50).contains(id)));
    }
}

#[test]
fn held_out_windows_are_consecutive_and_limited() {
    let content = counting(1000);
    let (_folder, path) = file(&content);
    let source = Source::Text(Text::read(&path, 16, 0.1).unwrap());
    let all = source.held_out(0, 16, 100);
    assert_eq!(all.lengths, [16; 7], "99 predicted bytes in windows of 16");
    assert_eq!(all.counted(), 99);
    let expected: Vec<i64> = content[900..999].iter().map(|&byte| i64::from(byte)).collect();
    assert_eq!(all.tokens[..99], expected);
    assert_eq!(all.labels[..98], expected[1..]);
    assert_eq!(all.labels[99..], [IGNORED; 13]);
    let few = source.held_out(0, 16, 2);
    assert_eq!((few.sequences(), few.counted()), (2, 32));
    assert_eq!(few.tokens, all.tokens[..32]);

    let recall = Source::Recall(Recall::new(64, 16).unwrap());
    assert_eq!(recall.held_out(5, 16, 4), recall.held_out(5, 16, 4));
    assert_ne!(recall.held_out(5, 16, 4).tokens, recall.batch(5, 0, 0..4, 16).tokens);
}

#[test]
fn documents_are_drawn_whole_and_all_of_them() {
    let content = b"first\n\nthe second\n\n\n\nx\n\nthird one\n\nheld out\n\ntoo";
    let (_folder, path) = file(content);
    let separator = || Separator::new("\n\n").unwrap();
    let share = 13.0 / content.len() as f64;
    let source = Source::Text(Text::read_documents(&path, separator(), 6, share).unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..50 {
        let batch = source.batch(3, step, 0..3, 6);
        assert_eq!(batch.lengths, source.lengths(3, step, 0..3, 6));
        assert_eq!(batch.lengths, [0..1, 1..3].map(|part| source.batch(3, step, part, 6).lengths).concat());
        for sequence in batch.chunks(1) {
            assert_eq!(sequence.tokens[1..], sequence.labels[..sequence.labels.len() - 1]);
            let ids = sequence.tokens.iter().chain(sequence.labels.last());
            seen.insert(String::from_utf8(ids.map(|&id| id as u8).collect()).unwrap());
        }
    }
    assert_eq!(Vec::from_iter(&seen), ["cond", "first", "one", "the sec", "third o"]);
    assert_eq!(source.held_out(0, 6, 9).lengths, [6, 1, 2], "\"held out\" is cut, \"too\" is not");
    assert_eq!(source.held_out(0, 6, 1).lengths, [6]);
    assert_eq!(source.possible_lengths(6), [4, 6, 3, 6, 2, 6, 1, 2]);
    assert_eq!(Source::Recall(Recall::new(64, 8).unwrap()).possible_lengths(8), [8]);

    let refused = |separator: &str, share| {
        let separator = Separator::new(separator).unwrap();
        let error = Text::read_documents(&path, separator, 6, share).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    };
    assert!(refused("\r\n", 0.0).contains("does not contain"));
    assert!(refused("\n\n", 0.03).contains("in the share held out"));
    let (_folder, path) = file(b"a|b|c|");
    let error = Text::read_documents(&path, Separator::new("|").unwrap(), 6, 0.0).unwrap_err().to_string();
    assert!(error.contains("no document of 2 bytes or more for training"), "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_with_numbers_and_a_fix() {
    let (_folder, path) = file(&counting(64));
    let refused = |seq, share| {
        let error = Text::read(&path, seq, share).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    };
    let message = refused(64, 0.0);
    assert!(
        message.contains("64 bytes") && message.contains("needs 65") && message.contains("--seq-len 63"),
        "{message}"
    );
    assert!(Text::read(&path, 63, 0.0).is_ok());
    let message = refused(60, 0.25);
    assert!(message.contains("48 bytes") && message.contains("16 of 64"), "{message}");
    assert!(refused(8, 0.6).contains("--validation is 0.6"));
    assert!(refused(8, f64::NAN).contains("--validation"));
    assert!(refused(8, -0.1).contains("--validation is -0.1"));
    assert!(refused(8, 0.02).contains("--validation 0.02 holds out 1 of the 64"));

    let (_folder, empty) = file(b"");
    assert!(Text::read(&empty, 8, 0.0).unwrap_err().to_string().contains("is empty"));
    let missing = empty.with_file_name("missing");
    let error = Text::read(&missing, 8, 0.0).unwrap_err();
    assert!(matches!(error, crate::error::Error::Data(DataError::Read { .. })) && error.is_input());
    assert!(Recall::new(1, 8).is_err() && Recall::new(8, 1).is_err());
}

#[test]
fn a_file_that_is_no_text_and_bytes_without_an_id_are_refused() {
    let (_folder, path) = file(b"a plain text");
    let lines = path.with_file_name("text.jsonl");
    std::fs::rename(&path, &lines).unwrap();
    for error in [
        Text::read(&lines, 4, 0.0).unwrap_err(),
        Text::read_documents(&lines, Separator::new(" ").unwrap(), 4, 0.0).unwrap_err(),
    ] {
        let message = error.to_string();
        assert!(error.is_input() && message.contains("text.jsonl is no plain text (JSON, by its name)"), "{message}");
        assert!(message.contains("--bytes"), "{message}");
    }
    assert!(Text::new(read_bytes(&lines).unwrap(), &lines, 4, 0.0).is_ok());

    assert!(check_bytes(b"abz", &path, 123).is_ok(), "z is 122");
    let message = check_bytes(b"abzaz", &path, 122).unwrap_err().to_string();
    assert!(message.contains("byte 122 at offset 2") && message.contains("vocabulary of 122"), "{message}");
    assert!(message.contains("at least 123"), "{message}");
    assert!(check_bytes(&[255], &path, 256).is_ok() && check_bytes(&[255], &path, 255).is_err());
}
