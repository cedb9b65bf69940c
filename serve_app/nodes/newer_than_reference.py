"""Node classes that ComfyUI has got after the version that this server is, as its newest help and templates name them.

They are said not to be there in the words for the others, so that nobody is told of a class that is merely named alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.nodes.unsupported import PAID, UNSUPPORTED, VIDEO

_BY_REASON: Mapping[str, str] = {
    "models of sound are not supported": (
        "EmptyYuE2LatentAudio GetAudioLatentSize SheetSage2AudioToABC YuE2GenerateABC YuE2GenerateMusic"
    ),
    VIDEO: (
        "MiniMaxH3FunControlNetApply LTXVAddGeneratedKeyframes LTXVAddLatentGuide LTXVFreezeLatent "
        "LTXVGeneratedKeyframesToGuides LTXVSeparateGeneratedKeyframes SeedVR2ProgressiveSampler"
    ),
    "3D models are not supported": (
        "Pixal3DMultiViewConditioning BuildPoseFile SAM3DBody_FaceExpression SAM3DBody_Loader SAM3DBody_Predict "
        "SAM3DBody_Render SAM3DBody_Smooth Get3DComponents"
    ),
    "it is for a model family that is not supported": (
        "Flux3LayoutPrompt MOSSImageControl MOSSImageLayoutPrompt MarigoldV2PostProcess TextEncodeFibo2 "
        "TextEncodeMOSSImageEdit TextEncodeMingImageEdit ModelMergeMOSSImage SenseNovaSamplingOptions"
    ),
    "it came after the version of ComfyUI that this server follows": (
        "BlockSparseAttention ReferenceMultiLatent BranchNode ConcatenateVideo ImageColorSpace ImageSDRToHDR "
        "LoadLoraModel LoadLoraTextEncoder PadImageNode VideoCrop VideoTrim"
    ),
    "ComfyUI has taken it back": (
        "DeprecatedCheckpointLoader DeprecatedDiffusersLoader LoadImageSetFromFolderNode LoadImageSetNode "
        "LoadImageTextSetFromFolderNode SaveLoRANode"
    ),
    "the page shows it and runs nothing": ("TerminalLog"),
    "ComfyUI itself puts it into a graph; use StartLoop and EndLoop": ("LoopIteration LoopProgress LoopResult"),
    PAID: (
        "BriaGuidedRemoveBackground BriaImageGenerate BriaProductHolding BriaVirtualTryOn "
        "ByteDance2DraftToFinalVideoNode ClarityCrystalUpscaleNode ClarityCrystalVideoUpscaleNode Flux3ImageNode "
        "Flux3MaxImageToVideoNode Flux3MaxTextToVideoNode FluxVideoEditNode GeminiNodeV3 GeminiVideoOmniV2 "
        "HeyGenImageToVideoNode HeyGenReferenceToVideoNode HeyGenVoiceCloneNode HeyGenVoiceTextToSpeechNode "
        "HiggsfieldMotionTransferNode HunyuanImageEditApi HunyuanImageTextToImageApi IdeogramEditApi "
        "IdeogramPreciseEditApi IdeogramTextToImageApi IdeogramVectorGenerateApi IdeogramVectorImageToSVGApi "
        "Kling4EditVideoNode Kling4ImageToVideoNode Kling4ReferenceToVideoNode Kling4TextToVideoNode KlingTryOnNode "
        "Krea3ImageNode MeshyImageToModelSmartTopologyNode MeshyTextToModelSmartTopologyNode MetaMuseImageEditApi "
        "MetaMuseImageTextToImageApi MireloTextToSFX MireloVideoToSFX OpenRouterImageNode PixverseV6FusionVideoNode "
        "PixverseV6ImageToVideoNode PixverseV6TextToVideoNode PrunaImageToVideoNode PrunaTextToVideoNode "
        "QuiverImageToSVGNodeV2 QuiverTextToSVGNodeV2 RecraftV4CreateStyleNode TripoImageToModelNodeV2 "
        "TripoPSeriesImageToModelNode TripoPSeriesMultiviewToModelNode TripoPSeriesTextToModelNode "
        "TripoTextToModelNodeV2 TripoTextureNodeV2 VeedCleanAudioNode VeedCleanVideoAudioNode VeedFabricNode "
        "VeedLipsyncNode VeedRemoveVideoBackgroundNode Vidu4ImageToVideoNode Vidu4ReferenceVideoNode "
        "Wan3ImageToVideoApi Wan3ReferenceToVideoApi BriaAddObject BriaEraseByText BriaEraseForeground BriaRelight "
        "BriaReplaceImageBackground BriaReplaceObject BriaReseason BriaRestorePhoto BriaVideoEraser "
        "ByteDanceSeedreamLayerSeparationNodeV2 ComfyCloudFlux2TextToImageNode ComfyCloudMageFlowTextToImageNode "
        "ComfyCloudMageFlowTurboTextToImageNode ComfyCloudMiniMaxH3FirstLastFrameToVideoNode "
        "ComfyCloudMiniMaxH3ImageToVideoNode ComfyCloudMiniMaxH3TextToVideoNode "
        "ComfyCloudMiniMaxMusic3TextToAudioNode ComfyCloudZImageTurboNode MeshyTextureMultiViewNode "
        "PixverseV6ExtendVideoNode PixverseV6FirstLastFrameNode TripoEditMultiviewNode TripoImageToMultiviewNode "
        "TripoMeshCompleteNode TripoRetopologyNode TripoRigCheckNode TripoSegmentNode TripoSmartSegmentNode"
    ),
}

NOT_THERE: Mapping[str, str] = {
    **UNSUPPORTED,
    **{class_type: reason for reason, class_types in _BY_REASON.items() for class_type in class_types.split()},
}
"""Why there is no such class, in words that end a sentence, by the name of every one that a workflow may ask for."""
