//! Print a row for each tensor of an `.apr` file: `cargo run --example list_tensors -- model.apr`

use std::{env, process::ExitCode};

fn list(path: &str) -> apr_format::Result<()> {
    let file = apr_format::open(path)?;
    println!("{path}: {}, {} tensors", file.form(), file.len());
    for tensor in file.tensors() {
        println!("{:<8} {:>14} bytes  {:?}  {}", tensor.dtype, tensor.nbytes, tensor.dims, tensor.name);
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(path) = env::args().nth(1) else {
        eprintln!("usage: list_tensors FILE");
        return ExitCode::from(2);
    };
    match list(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The error has the place in the file, but not the file's name.
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}
