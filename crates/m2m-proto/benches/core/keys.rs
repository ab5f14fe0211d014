//! What protects a packet: each suite by each implementation, the curve, the replay window.
use std::hint::black_box;

use criterion::Criterion;
use m2m_proto::{
    session::{
        keys::{Crypto, DhSecret, ShortHeader, Suite},
        pn::Pn,
        replay::{Verdict, Window},
    },
    wire::packet::{PnLen, Token},
};

use super::{crypto_name, established};

pub(crate) fn bench(c: &mut Criterion) {
    seal(c);
    open(c);
    curve(c);
    replay(c);
}

/// Each suite with each implementation that has it, and both their names.
fn suites() -> impl Iterator<Item = (Suite, Crypto, String)> {
    let gcm = [("AES-128-GCM", Suite::Aes128Gcm), ("AES-256-GCM", Suite::Aes256Gcm)];
    let every = gcm.into_iter().flat_map(|suite| Crypto::ALL.iter().map(move |crypto| (suite, *crypto)));
    let one = [(("AES-128-CCM-8", Suite::Aes128Ccm8), Crypto::RustCrypto)];
    every
        .chain(one)
        .map(|((name, suite), crypto)| (suite, crypto, format!("{name}, {}", crypto_name(crypto))))
}

fn header(pn: Pn) -> ShortHeader {
    ShortHeader { key_phase: false, token: Token::new(7).unwrap(), pn, pn_len: PnLen::Two }
}

/// A packet's buffer with 64 bytes of plaintext in it.
fn plain(suite: Suite) -> Vec<u8> {
    vec![0x40; PnLen::Two.header_len() + 64 + suite.tag_len()]
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal 64 B");
    for (suite, crypto, name) in suites() {
        let (key, _) = established(suite).0.packet_keys();
        let (cipher, mut packet, mut pn) = (key.expand_with(crypto), plain(suite), Pn(0));
        group.bench_function(format!("{name}, round keys kept"), |b| {
            b.iter(|| {
                pn = Pn(pn.0 + 1);
                cipher.seal_in_place(&header(pn), black_box(&mut packet))
            });
        });
        group.bench_function(format!("{name}, round keys made"), |b| {
            b.iter(|| {
                pn = Pn(pn.0 + 1);
                key.expand_with(crypto).seal_in_place(&header(pn), black_box(&mut packet))
            });
        });
    }
    group.finish();
}

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open 64 B");
    for (suite, crypto, name) in suites() {
        let (here, there) = established(suite);
        let (seal_key, open_key) = (here.packet_keys().0, there.packet_keys().1);
        let mut sealed = plain(suite);
        seal_key.seal_in_place(&header(Pn(1)), &mut sealed).unwrap();
        let (cipher, mut packet) = (open_key.expand_with(crypto), sealed.clone());
        group.bench_function(format!("{name}, round keys kept"), |b| {
            b.iter(|| {
                packet.copy_from_slice(black_box(&sealed));
                cipher.open_in_place(&mut packet, Pn(0)).unwrap()
            });
        });
        group.bench_function(format!("{name}, round keys made"), |b| {
            b.iter(|| {
                packet.copy_from_slice(black_box(&sealed));
                open_key.expand_with(crypto).open_in_place(&mut packet, Pn(0)).unwrap()
            });
        });
    }
    group.finish();
}

fn curve(c: &mut Criterion) {
    let mut group = c.benchmark_group("X25519");
    for &crypto in Crypto::ALL {
        let name = crypto_name(crypto);
        group.bench_function(format!("key pair, {name}"), |b| {
            b.iter(|| *DhSecret::with(crypto, black_box([1; 32])).public());
        });
        let (ours, theirs) = (DhSecret::with(crypto, [1; 32]), DhSecret::with(crypto, [2; 32]));
        group.bench_function(format!("shared secret, {name}"), |b| {
            b.iter(|| ours.agree(black_box(theirs.public())).is_ok());
        });
    }
    group.finish();
}

fn replay(c: &mut Criterion) {
    let (mut window, mut pn) = (Window::default(), 0);
    c.bench_function("replay window: a number judged and marked", |b| {
        b.iter(|| {
            // Every other number comes after the one that follows it.
            pn += 1;
            let pn = Pn(black_box(pn ^ 1));
            assert_eq!(window.check(pn), Verdict::Fresh);
            window.mark(pn);
        });
    });
}
