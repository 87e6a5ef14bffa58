//! The smallest program that embeds the log: append, wait, close.
//!
//! `cargo run --example embed -- DIR`

use hanaper::{Log, WaitFor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: embed DIR")?;
    let log = Log::builder(folder).shards(1).segment_bytes(4 << 20).open()?;
    let mut producer = log.producer()?;
    for n in 0..1000 {
        let event = format!("{{\"order\":{n},\"event\":\"accepted\"}}");
        let ticket = producer.append(b"account-7", event.as_bytes())?;
        if n % 100 == 99 {
            let receipt = producer.wait(ticket, WaitFor::block())?;
            println!("event {n} is durable: shard {} sequence {}", receipt.shard, receipt.seq);
        }
    }
    producer.flush()?;
    println!("closed: {:?}", log.close()?);
    Ok(())
}
