//! replay FOLDER: judges the protocol traces in a folder again, round by round: `traces/` of a kept run of the campaign.

use std::{path::PathBuf, process::ExitCode};

use millrace_model::replay::rounds::judge_again;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: replay FOLDER");
        return ExitCode::from(2);
    };
    let rounds = match judge_again(&dir) {
        Ok(rounds) => rounds,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    let mut is_accepted = true;
    for (round, judged) in rounds {
        let verdict = match judged {
            Ok(judged) => format!("accepted: {} steps, {} without an answer", judged.steps, judged.unanswered),
            Err(why) => {
                is_accepted = false;
                format!("rejected: {why}")
            }
        };
        println!("round {}: {verdict} ({})", round.round, round.faults.join(", "));
    }
    if is_accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
