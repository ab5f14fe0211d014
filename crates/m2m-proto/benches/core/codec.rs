//! Bytes to structures and back.
use std::hint::black_box;

use criterion::Criterion;
use m2m_proto::{
    coap::{
        code::Code,
        message::{Message, MessageToken, MessageType, Mid},
        option::OptionNumber,
        writer::MessageWriter,
    },
    wire::{
        bundle::{PlainWriter, elements},
        frame::{Frame, RelayFlags},
        packet::Packet,
    },
};

use super::id;

const MESSAGE: [u8; 17] =
    [0x44, 0x01, 0x12, 0x34, 1, 2, 3, 4, 0xB4, b't', b'e', b'm', b'p', 0xFF, b'a', b'b', b'c'];

pub(crate) fn bench(c: &mut Criterion) {
    parse(c);
    build(c);
}

fn relay_frame(inner: &[u8]) -> Frame<'_> {
    Frame::Relay { hop_limit: 16, flags: RelayFlags(0), dst: id(1), src: id(2), inner }
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.bench_function("message", |b| {
        b.iter(|| {
            let message = Message::parse(black_box(&MESSAGE)).unwrap();
            message.options().count() + message.payload().len()
        });
    });
    let mut frame = Vec::new();
    relay_frame(&[0x41; 64]).encode(&mut frame);
    group.bench_function("relay frame", |b| b.iter(|| elements(black_box(&frame)).unwrap().count()));
    let bundle = [0x3F, 5, 1, 0, 1, 0, 25, 4, 0x40, 1, 0x12, 0x34];
    group.bench_function("bundle of two", |b| b.iter(|| elements(black_box(&bundle)).unwrap().count()));
    group.bench_function("short packet", |b| b.iter(|| Packet::decode(black_box(&[0x41; 87])).is_ok()));
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    let mut out = Vec::with_capacity(256);
    group.bench_function("message", |b| {
        b.iter(|| {
            out.clear();
            let token = MessageToken::from_u32(black_box(0x0102_0304));
            let kind = MessageType::Con;
            let mut writer = MessageWriter::new(&mut out, kind, Code::GET, Mid(0x1234), token);
            writer.option(OptionNumber::URI_PATH, b"temp").unwrap();
            writer.payload(black_box(b"abc"));
            out.len()
        });
    });
    group.bench_function("relay frame", |b| {
        b.iter(|| {
            out.clear();
            relay_frame(black_box(&[0x41; 64])).encode(&mut out);
            out.len()
        });
    });
    group.bench_function("bundle of 16 messages", |b| {
        b.iter(|| {
            out.clear();
            let mut writer = PlainWriter::new(&mut out, 1200);
            (0..16).for_each(|_| assert!(writer.push_message(black_box(&MESSAGE))));
            writer.len()
        });
    });
    group.finish();
}
