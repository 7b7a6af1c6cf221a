//! replay FILE…: judges the protocol traces of one pipeline's processes, from its first step on.

use std::{fs, process::ExitCode};

use millrace_model::replay::{Disturbed, Replay};

fn main() -> ExitCode {
    match judge() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("rejected: {why}");
            ExitCode::FAILURE
        }
    }
}

fn judge() -> Result<String, String> {
    let (mut replay, mut disturbed) = (Replay::default(), Disturbed::default());
    for (process, name) in std::env::args().skip(1).enumerate() {
        match name.as_str() {
            "--redis-rewound" => disturbed.redis = true,
            "--postgres-rewound" => disturbed.postgres = true,
            _ => {
                let text = fs::read_to_string(&name).map_err(|error| format!("{name}: {error}"))?;
                replay.read(process, &text).map_err(|error| format!("{name}: {error}"))?;
            }
        }
    }
    let judged = replay.judge(disturbed).map_err(|rejected| rejected.to_string())?;
    Ok(format!("accepted: {} steps, {} without an answer", judged.steps, judged.unanswered))
}
