//! The options that shape a machine's tree, and which kind of source each is for.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::error::CliError;
use crate::limit::{DiskLimit, read_disk_limit};
use crate::sources::catalogue::CatalogueOptions;
use crate::sources::disk::DiskOptions;
use crate::sources::oci::{Image, ImageOptions};
use crate::sources::sum::Sum;
use crate::sources::tarball::{Part, Subtree, Wanted};
use crate::sources::{BootstrapOptions, Bootstrapper, CacheUse, Distro, DownloadOptions, Options, Source, Verify};
use crate::sys::config::Config;
use crate::sys::files::shown;

#[derive(Debug, Default, clap::Args)]
pub(super) struct SourceArgs {
    #[command(flatten)]
    archive: ArchiveArgs,
    #[command(flatten)]
    disk: DiskArgs,
    #[command(flatten)]
    bootstrap: BootstrapArgs,
    #[command(flatten)]
    image: ImageArgs,
}

/// Of images of containers.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Registry")]
pub(in crate::cli) struct ImageArgs {
    /// Whether a registry has to prove who it is; `no` is for one on this host, which may then speak http [default: yes]
    #[arg(long, value_enum, value_name = "WHETHER")]
    tls_verify: Option<YesNo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum YesNo {
    #[value(alias = "true")]
    Yes,
    #[value(alias = "false")]
    No,
}

impl ImageArgs {
    /// Refuses what was given, and is not for this source.
    pub(in crate::cli) fn check(self, source: Option<&Source>) -> Result<(), CliError> {
        let is_registry = matches!(source, Some(Source::Image(Image::Registry(_))));
        if self.tls_verify.is_some() && !is_registry {
            return Err(CliError::usage("--tls-verify is for docker://…"));
        }
        Ok(())
    }

    /// Whether a registry on this host is trusted as it is.
    pub(in crate::cli) fn is_trusted(self) -> bool {
        self.tls_verify == Some(YesNo::No)
    }
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Archive")]
struct ArchiveArgs {
    /// Take that many leading directories off each name, as tar's --strip-components
    #[arg(long, value_name = "N")]
    strip: Option<usize>,
    /// The directory of the archive that becomes the root; what lies elsewhere is left out
    #[arg(long, value_name = "PATH")]
    subtree: Option<Subtree>,
    /// The SHA-256 sum that the archive must have, else nothing is made
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sum>,
    /// How much of the disk it may take at most, such as 20G [default: almost all that is free]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// The server of the catalogue that images:… is of [default: https://images.linuxcontainers.org]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// What has to vouch for a download [default: signature, if a key is known; else checksum, if one is beside it]
    #[arg(long, value_enum, value_name = "CHECK")]
    verify: Option<VerifyArg>,
}

fn size(text: &str) -> Result<u64, String> {
    match read_disk_limit(text) {
        Ok(DiskLimit::Bytes(bytes)) => Ok(bytes),
        _ => Err("expected bytes, or a number with K, M, G or T".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyArg {
    /// An OpenPGP signature beside it, over it or over its .sha256 or .sha512 file, SHA256SUMS or SHA512SUMS, by a key of --keyring or a pinned one
    Signature,
    /// A .sha256 or .sha512 file, SHA256SUMS or SHA512SUMS beside it over https, else nothing is made
    Checksum,
    /// Nothing
    No,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Disk image")]
struct DiskArgs {
    /// Unpack its root filesystem into a directory, instead of keeping an image; also where the name tells nothing
    #[arg(long)]
    extract: bool,
    /// The partition that is its root, if that cannot be told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partition: Option<u32>,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Bootstrap")]
struct BootstrapArgs {
    /// Packages to install besides
    #[arg(long, value_name = "PKG,…", value_delimiter = ',')]
    include: Vec<String>,
    /// The bootstrapper's variant [default: minbase]
    #[arg(long)]
    variant: Option<String>,
    /// Archive components, such as main,contrib
    #[arg(long, value_name = "COMP,…", value_delimiter = ',')]
    components: Vec<String>,
    /// The mirror, if not the distribution's public one
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// An HTTP proxy for the mirror, or a download
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Architecture, as Debian calls it; of an image for several, that one
    #[arg(long)]
    arch: Option<String>,
    /// The keys to trust the mirror by; of a download, those by one of which it has to be signed
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
    /// Which program does it [default: auto]
    #[arg(long, value_enum)]
    bootstrapper: Option<BootstrapperArg>,
    /// Neither use nor fill the cache of bootstraps and downloads
    #[arg(long, conflicts_with = "refresh")]
    no_cache: bool,
    /// Bootstrap or download anew even if there is a cached one
    #[arg(long)]
    refresh: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BootstrapperArg {
    Auto,
    Debootstrap,
    Mmdebstrap,
}

impl BootstrapArgs {
    fn cache(&self) -> CacheUse {
        match (self.no_cache, self.refresh) {
            (true, _) => CacheUse::Skip,
            (_, true) => CacheUse::Refresh,
            _ => CacheUse::Use,
        }
    }
}

impl SourceArgs {
    /// Refuses an option that was given, and that the source would ignore.
    pub(super) fn check(&self, source: &Source) -> Result<(), CliError> {
        let (archive, bootstrap) = (&self.archive, &self.bootstrap);
        let for_archives = [
            ("--strip", archive.strip.is_some()),
            ("--subtree", archive.subtree.is_some()),
        ];
        let for_sizes = [("--max-size", archive.max_size.is_some())];
        let for_files = [("--sha256", archive.sha256.is_some())];
        let for_disks = [
            ("--extract", self.disk.extract),
            ("--partition", self.disk.partition.is_some() && !source.is_disk()),
        ];
        let for_bootstraps = [
            ("--include", !bootstrap.include.is_empty()),
            ("--variant", bootstrap.variant.is_some()),
            ("--components", !bootstrap.components.is_empty()),
            ("--mirror", bootstrap.mirror.is_some()),
            ("--bootstrapper", bootstrap.bootstrapper.is_some()),
        ];
        let for_both = [
            ("--proxy", bootstrap.proxy.is_some()),
            ("--no-cache", bootstrap.no_cache),
            ("--refresh", bootstrap.refresh),
        ];
        let for_signed = [("--keyring", bootstrap.keyring.is_some())];
        let for_any_arch = [("--arch", bootstrap.arch.is_some())];
        let for_catalogues = [("--server", archive.server.is_some())];
        let for_downloads = [("--verify", archive.verify.is_some())];
        let is_catalogue = matches!(source, Source::Catalogue(_));
        let is_url = is_catalogue || matches!(source, Source::Url(_));
        let is_bootstrap = matches!(source, Source::Bootstrap { .. });
        let is_image = matches!(source, Source::Image(_));
        let is_fetched = is_url || matches!(source, Source::Image(Image::Registry(_)));
        let is_disk = source.is_disk() || self.disk.extract;
        let is_archive = (is_url || matches!(source, Source::Tarball(_) | Source::Stdin)) && !is_disk;
        let has_disk = is_url || matches!(source, Source::Disk(_) | Source::Stdin);
        for (options, kinds, fits) in [
            (&for_disks[..], "disk images", has_disk),
            (&for_archives[..], "tar archives", is_archive),
            (
                &for_sizes[..],
                "archives, disk images and images of containers",
                is_archive || has_disk || is_image,
            ),
            (&for_files[..], "archives and disk images", is_archive || has_disk),
            (&for_downloads[..], "downloads", is_url),
            (&for_catalogues[..], "images:DISTRO/RELEASE", is_catalogue),
            (&for_bootstraps[..], "debian:SUITE and ubuntu:SUITE", is_bootstrap),
            (
                &for_any_arch[..],
                "debian:SUITE, ubuntu:SUITE, images:DISTRO/RELEASE and images of containers",
                is_bootstrap || is_catalogue || is_image,
            ),
            (
                &for_signed[..],
                "debian:SUITE, ubuntu:SUITE and downloads",
                is_bootstrap || is_url,
            ),
            (
                &for_both[..],
                "debian:SUITE, ubuntu:SUITE and downloads",
                is_bootstrap || is_fetched,
            ),
        ] {
            if let Some((option, _)) = options.iter().find(|(_, given)| *given && !fits) {
                let message = format!("{option} is for {kinds}, not for '{}'", shown(&source.to_string()));
                return Err(CliError::usage(message));
            }
        }
        self.image.check(Some(source))?;
        self.check_verify()?;
        match self.archive.verify {
            Some(VerifyArg::Checksum | VerifyArg::No) if is_catalogue => Err(CliError::usage(
                "the SHA-256 sums of a catalogue are always compared: --verify=signature is all that there is besides",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses what would be more and less than is asked for.
    fn check_verify(&self) -> Result<(), CliError> {
        let less = match self.archive.verify {
            Some(VerifyArg::Checksum) => "--verify=checksum",
            Some(VerifyArg::No) => "--verify=no",
            Some(VerifyArg::Signature) | None => return Ok(()),
        };
        let given = [
            ("--sha256", self.archive.sha256.is_some()),
            ("--keyring", self.bootstrap.keyring.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(CliError::usage(format!("{option} cannot be used with {less}"))),
            None => Ok(()),
        }
    }

    /// What they mean, with what is configured.
    pub(super) fn options(&self, source: &Source, config: &Config) -> Options {
        Options {
            bootstrap: bootstrap(&self.bootstrap, source, config),
            archive: Wanted {
                part: Part {
                    strip: self.archive.strip.unwrap_or(0),
                    subtree: self.archive.subtree.clone(),
                },
                sum: self.archive.sha256,
                max_size: self.archive.max_size,
            },
            disk: DiskOptions {
                extract: self.disk.extract,
                partition: self.disk.partition,
            },
            download: DownloadOptions {
                proxy: self.bootstrap.proxy.clone().or_else(|| config.proxy.clone()),
                cache: self.bootstrap.cache(),
                verify: match self.archive.verify {
                    None => Verify::Offered,
                    Some(VerifyArg::Signature) => Verify::Signature,
                    Some(VerifyArg::Checksum) => Verify::Checksum,
                    Some(VerifyArg::No) => Verify::No,
                },
                keyring: self.bootstrap.keyring.clone(),
            },
            catalogue: CatalogueOptions {
                server: self.archive.server.clone().or_else(|| config.image_server.clone()),
                arch: self.bootstrap.arch.clone(),
            },
            image: ImageOptions {
                arch: self.bootstrap.arch.clone(),
                is_trusted: self.image.is_trusted(),
            },
        }
    }
}

/// What shapes a tree if nobody says otherwise.
pub(in crate::cli) fn usual_options(source: &Source, config: &Config) -> Options {
    let mut options = SourceArgs::default().options(source, config);
    // What runs once is a directory.
    options.disk.extract = source.is_disk();
    options
}

fn bootstrap(args: &BootstrapArgs, source: &Source, config: &Config) -> BootstrapOptions {
    let configured_mirror = match source {
        Source::Bootstrap {
            distro: Distro::Debian, ..
        } => config.debian_mirror.clone(),
        Source::Bootstrap {
            distro: Distro::Ubuntu, ..
        } => config.ubuntu_mirror.clone(),
        _ => None,
    };
    let bootstrapper = match (args.bootstrapper, config.bootstrapper.as_deref()) {
        (Some(BootstrapperArg::Debootstrap), _) | (None, Some("debootstrap")) => Bootstrapper::Debootstrap,
        (Some(BootstrapperArg::Mmdebstrap), _) | (None, Some("mmdebstrap")) => Bootstrapper::Mmdebstrap,
        _ => Bootstrapper::Auto,
    };
    BootstrapOptions {
        include: config.include.iter().chain(&args.include).cloned().collect(),
        variant: args.variant.clone(),
        components: args.components.clone(),
        mirror: args.mirror.clone().or(configured_mirror),
        proxy: args.proxy.clone().or_else(|| config.proxy.clone()),
        arch: args.arch.clone(),
        keyring: args.keyring.clone(),
        bootstrapper,
        cache: args.cache(),
    }
}
