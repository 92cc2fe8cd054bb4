//! Compiles the .proto files with protox (no protoc on the machine) and writes the descriptor set beside the code:
//! the model converts protobuf kinds to and from JSON by it.
use std::{env, fs, path::PathBuf};

#[allow(clippy::disallowed_methods, reason = "cargo tells a build script its folder by the environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/discovery.proto",
        "proto/kds.proto",
        "proto/mesh.proto",
        "proto/observed.proto",
        "proto/peer.proto",
        "proto/system.proto",
    ];
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(files)?;
    let set = compiler.file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .compile_fds(set)?;
    Ok(())
}
