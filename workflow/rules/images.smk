# Container images: `snakemake images` builds those that the study uses, `--sdm apptainer` uses them.
IMAGES = sorted({CPU_IMAGE, GPU_IMAGE})
IMAGES_LOCK = f"{CONTAINERS}/images.lock"

if IN_CONTAINERS:
    enter_containers(IMAGES, IMAGES_LOCK)
else:
    # Here only, so that no study builds an image, or builds it again, on its own.

    localrules:
        images,
        lock_images,
        image,
        wheels,
        base_image,

    rule images:
        """Build the images that this study uses."""
        input:
            IMAGES,
            IMAGES_LOCK,

    rule lock_images:
        """Write down what they hold."""
        input:
            images=IMAGES,
        output:
            # It keeps what it says of another study's images.
            lock=update(IMAGES_LOCK),
        log:
            "logs/images/lock.log",
        conda:
            "../../envs/megavoxel.yaml"
        shell:
            "megavoxel lock-images --images {input.images:q} --output {output.lock:q} 2>&1 | tee {log:q}"

    rule image:
        """Packages and code on the base."""
        input:
            definition=f"{CONTAINERS}/megavoxel.def",
            base=f"{CONTAINERS}/images/base.sif",
            wheels=f"{CONTAINERS}/wheels/{{kind}}",
        output:
            image=f"{CONTAINERS}/images/{{kind}}.sif",
        log:
            "logs/images/{kind}.log",
        wildcard_constraints:
            kind="cpu|gpu",
        conda:
            "../../envs/megavoxel.yaml"
        params:
            # The package is no input file by file, but a change of it makes the image again.
            hash=hash_of_sources(ROOT),
        shell:
            "megavoxel image --definition {input.definition:q} --argument base={input.base:q} "
            "--argument wheels={input.wheels:q} --argument sources={params.hash} --output {output.image:q} "
            "> {log:q} 2>&1"

    rule wheels:
        """Download the packages, so that the build needs no network."""
        input:
            requirements=os.path.relpath(ROOT / "requirements.lock"),
            hashed=os.path.relpath(ROOT / "requirements-hashed.lock"),
        output:
            wheels=directory(f"{CONTAINERS}/wheels/{{kind}}"),
        log:
            "logs/images/{kind}-wheels.log",
        conda:
            "../../envs/megavoxel.yaml"
        params:
            index=index_of_wheels,
        shell:
            "megavoxel wheels --requirements {input.requirements:q} --hashed {input.hashed:q} {params.index} --output {output.wheels:q} "
            "> {log:q} 2>&1"

    rule base_image:
        """Debian with Python."""
        input:
            definition=f"{CONTAINERS}/base.def",
        output:
            image=f"{CONTAINERS}/images/base.sif",
        log:
            "logs/images/base.log",
        conda:
            "../../envs/megavoxel.yaml"
        params:
            mirror=lambda wildcards, output: config.get("debian_mirror", "host"),
            lock=f"{CONTAINERS}/base.lock",
        shell:
            "megavoxel image --definition {input.definition:q} --mirror {params.mirror:q} --base-lock {params.lock:q} --output {output.image:q} "
            "> {log:q} 2>&1"
