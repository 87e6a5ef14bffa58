//! The lane alone, both ends on one thread: what pushing and popping cost when nothing is contended.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hanaper_shards::lane::lane;

fn push_and_pop(c: &mut Criterion) {
    const FRAMES: u64 = 256;
    let mut group = c.benchmark_group("lane");
    group.throughput(Throughput::Elements(FRAMES));
    for bytes in [64, 304, 4096] {
        let (mut producer, mut consumer) = lane(4 << 20);
        let frame = vec![7; bytes];
        group.bench_function(format!("push_pop/{bytes}"), |b| {
            b.iter(|| {
                for _ in 0..FRAMES {
                    let mut claim = producer.try_claim(bytes).expect("room for all");
                    claim.copy_from_slice(&frame);
                    claim.commit();
                }
                for _ in 0..FRAMES {
                    black_box(consumer.peek().expect("all were published")[0]);
                    consumer.pop();
                }
                consumer.release();
            });
        });
        group.bench_function(format!("push_pop_published_once/{bytes}"), |b| {
            b.iter(|| {
                for _ in 0..FRAMES {
                    let mut claim = producer.try_claim(bytes).expect("room for all");
                    claim.copy_from_slice(&frame);
                    claim.commit_later();
                }
                producer.publish();
                while let Some(frame) = consumer.peek() {
                    black_box(frame[0]);
                    consumer.pop();
                }
                consumer.release();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, push_and_pop);
criterion_main!(benches);
