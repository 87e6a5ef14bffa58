//! The command line of the torture chamber.

use std::process::ExitCode;
use std::time::Instant;

use hanaper_torture::scenario::{ALL, Scenario};
use hanaper_torture::sim::Tally;
use hanaper_torture::sim::mutant::Mutant;

const USAGE: &str = "usage: hanaper-torture sim [--iterations N] [--seed S] [--scenario NAME] [--json]
Runs N histories of each scenario, from seed S on, on a simulated disk.
Exit code 1: something acknowledged was lost or altered, or another promise was broken.
Each violation names its scenario and seed; `--scenario NAME --seed S --iterations 1` shows it again.
scenarios:";

struct Options {
    iterations: u64,
    seed: u64,
    scenarios: Vec<Scenario>,
    json: bool,
}

fn options() -> Result<Options, String> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some("sim") {
        return Err("the tier `sim` is the only one so far".to_owned());
    }
    let mut out = Options { iterations: 1000, seed: 1, scenarios: ALL.to_vec(), json: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        match arg.as_str() {
            "--iterations" => out.iterations = number(value()?)?,
            "--seed" => out.seed = number(value()?)?,
            "--json" => out.json = true,
            "--scenario" => {
                let name = value()?;
                out.scenarios.retain(|s| s.name == name);
                if out.scenarios.is_empty() {
                    return Err(format!("no scenario is called {name}"));
                }
            }
            _ => return Err(format!("{arg} is not known")),
        }
    }
    Ok(out)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            for s in ALL {
                eprintln!("  {:<18} {}", s.name, s.about);
            }
            return ExitCode::from(2);
        }
    };
    // A panic of the code under test is a finding like any other.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = 0;
    for scenario in &options.scenarios {
        let began = Instant::now();
        let mut sum = Tally::default();
        let mut violations = Vec::new();
        for i in 0..options.iterations {
            match scenario.run(options.seed.wrapping_add(i), Mutant::None) {
                Ok((tally, _)) => sum.add(&tally),
                Err(violation) => {
                    if violations.len() < 10 {
                        eprintln!("VIOLATION {violation}");
                    }
                    violations.push(violation);
                }
            }
        }
        failures += violations.len();
        let seconds = began.elapsed().as_secs_f64();
        if options.json {
            let numbers: Vec<String> = sum.list().iter().map(|(n, v)| format!("\"{n}\":{v}")).collect();
            let seeds: Vec<String> = violations.iter().map(|v| v.seed.to_string()).collect();
            println!(
                "{{\"tier\":\"sim\",\"scenario\":\"{}\",\"seed\":{},\"iterations\":{},\"seconds\":{seconds:.1},\"violations\":{},\"failing_seeds\":[{}],{}}}",
                scenario.name,
                options.seed,
                options.iterations,
                violations.len(),
                seeds.join(","),
                numbers.join(",")
            );
        } else {
            println!(
                "{}: {} histories in {seconds:.1} s, {} violations",
                scenario.name,
                options.iterations,
                violations.len()
            );
            for (name, value) in sum.list().into_iter().filter(|(_, v)| *v > 0) {
                println!("  {name:<26} {value}");
            }
        }
    }
    if failures > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS }
}
