//! Bytes to records and batches: copying, checksums and hashes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hanaper_shards::aligned::AlignedBuf;
use hanaper_shards::batch::{self, DIGEST_BYTES};
use hanaper_shards::clock::Clock;
use hanaper_shards::record::{self, Kind};

const KEY: &[u8] = b"acct-042";

fn header(payload_bytes: usize) -> record::Header {
    record::Header {
        payload_bytes: payload_bytes as u32,
        key_bytes: KEY.len() as u16,
        kind: Kind::Data,
        flags: 0,
        producer: 1,
        producer_seq: 1 << 40,
        log_time: 1 << 60,
    }
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for bytes in [64, 256, 4096] {
        let payload = vec![7; bytes];
        let mut into = vec![0; record::encoded_bytes(KEY.len(), bytes)];
        let seal = record::Seal::new(&[3; 16]);
        group.throughput(Throughput::Bytes(into.len() as u64));
        group.bench_function(format!("write/{bytes}"), |b| {
            b.iter(|| record::write(black_box(&header(bytes)), KEY, black_box(&payload), &mut into));
        });
        group.bench_function(format!("seal/{bytes}"), |b| b.iter(|| seal.seal(black_box(9), &mut into)));
        group.bench_function(format!("open/{bytes}"), |b| {
            b.iter(|| black_box(seal.open(9, black_box(&into)).expect("just sealed").1));
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for placed in [4 << 10, 64 << 10] {
        let body_bytes = placed - batch::HEADER_BYTES - DIGEST_BYTES;
        let mut into = AlignedBuf::zeroed(batch::placed_bytes(body_bytes, 4096));
        let header = batch::Header {
            log: [1; 16],
            incarnation: [2; 16],
            generation: 0,
            shard: 0,
            number: 7,
            first_seq: 100,
            count: 10,
            body_bytes: body_bytes as u32,
            time_min: 1,
            time_max: 2,
            durable: 6,
            offset: 4096,
            anchor: Clock::start(0).anchor(),
            previous: [4; 32],
        };
        group.throughput(Throughput::Bytes(placed as u64));
        group.bench_function(format!("seal/{}K", placed >> 10), |b| {
            b.iter(|| black_box(batch::seal(black_box(&header), &mut into)));
        });
        group.bench_function(format!("open/{}K", placed >> 10), |b| {
            b.iter(|| black_box(batch::open(black_box(&into), 4096).expect("just sealed").body.len()));
        });
    }
    group.finish();
}

criterion_group!(benches, records, batches);
criterion_main!(benches);
