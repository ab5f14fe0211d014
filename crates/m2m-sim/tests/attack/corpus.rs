//! What the fuzzers found worth keeping, replayed.
use std::{fs, path::Path};

#[path = "../../../../fuzz/fuzz_targets/script/mod.rs"]
mod script;

/// Runs a target on its corpus.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(corpus).expect("the corpus is there") {
        let path = entry.expect("the corpus can be read").path();
        let bytes = fs::read(&path).expect("a file");
        println!("{}", path.display());
        run(&bytes);
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn nets_survive_their_corpus() {
    replay("net", script::nets::run);
}

#[test]
fn handshakes_survive_their_corpus() {
    replay("handshake", script::handshake::run);
}

#[test]
fn a_net_survives_what_an_authentic_peer_said() {
    replay("session", script::peer::run);
}
