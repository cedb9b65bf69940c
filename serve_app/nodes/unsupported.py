"""ComfyUI's node classes that there are not, each with the reason, for whoever submits a workflow that has one.

Every class of ComfyUI 0.3.64, its extras and its API nodes is either in `registry.BUILTIN` or here.
"""

from __future__ import annotations

from collections.abc import Mapping

PAID = "it calls a paid service on the internet"
"""Why there are no API nodes."""

_BY_REASON: Mapping[str, str] = {
    PAID: (
        "ViduTextToVideoNode ViduImageToVideoNode ViduReferenceVideoNode ViduStartEndToVideoNode "
        "KlingCameraControls KlingTextToVideoNode KlingCameraControlT2VNode KlingImage2VideoNode "
        "KlingCameraControlI2VNode KlingStartEndFrameNode KlingVideoExtendNode KlingDualCharacterVideoEffectNode "
        "KlingSingleImageVideoEffectNode KlingLipSyncAudioToVideoNode KlingLipSyncTextToVideoNode "
        "KlingVirtualTryOnNode KlingImageGenerationNode StabilityStableImageUltraNode "
        "StabilityStableImageSD_3_5Node StabilityUpscaleConservativeNode StabilityUpscaleCreativeNode "
        "StabilityUpscaleFastNode StabilityTextToAudio StabilityAudioToAudio StabilityAudioInpaint GeminiNode "
        "GeminiImageNode GeminiInputFiles IdeogramV1 IdeogramV2 IdeogramV3 WanTextToImageApi WanImageToImageApi "
        "WanTextToVideoApi WanImageToVideoApi FluxProUltraImageNode FluxProImageNode FluxProExpandNode "
        "FluxProFillNode FluxProCannyNode FluxProDepthNode OpenAIVideoSora2 MoonvalleyImg2VideoNode "
        "MoonvalleyVideo2VideoNode MoonvalleyTxt2VideoNode PikaImageToVideoNode2_2 PikaTextToVideoNode2_2 "
        "PikaScenesV2_2 Pikadditions Pikaswaps Pikaffects PikaStartEndFrameNode2_2 PixverseTemplateNode "
        "PixverseTextToVideoNode PixverseImageToVideoNode PixverseTransitionVideoNode TripoTextToModelNode "
        "TripoImageToModelNode TripoMultiviewToModelNode TripoTextureNode TripoRefineNode TripoRigNode "
        "TripoRetargetNode TripoConversionNode VeoVideoGenerationNode Veo3VideoGenerationNode "
        "RecraftTextToImageNode RecraftImageToImageNode RecraftImageInpaintingNode RecraftTextToVectorNode "
        "RecraftVectorizeImageNode RecraftRemoveBackgroundNode RecraftReplaceBackgroundNode RecraftCrispUpscaleNode "
        "RecraftCreativeUpscaleNode RecraftStyleV3RealisticImage RecraftStyleV3DigitalIllustration "
        "RecraftStyleV3LogoRaster RecraftStyleV3InfiniteStyleLibrary RecraftColorRGB RecraftControls "
        "Rodin3D_Regular Rodin3D_Detail Rodin3D_Smooth Rodin3D_Sketch Rodin3D_Gen2 LumaReferenceNode "
        "LumaConceptsNode LumaImageNode LumaImageModifyNode LumaVideoNode LumaImageToVideoNode "
        "RunwayImageToVideoNodeGen3a RunwayImageToVideoNodeGen4 RunwayFirstLastFrameNode RunwayTextToImageNode "
        "ByteDanceImageNode ByteDanceImageEditNode ByteDanceSeedreamNode ByteDanceTextToVideoNode "
        "ByteDanceImageToVideoNode ByteDanceFirstLastFrameNode ByteDanceImageReferenceNode MinimaxTextToVideoNode "
        "MinimaxImageToVideoNode MinimaxSubjectToVideoNode MinimaxHailuoVideoNode OpenAIDalle2 OpenAIDalle3 "
        "OpenAIGPTImage1 OpenAIChatNode OpenAIInputFiles OpenAIChatConfig"
    ),
    "audio is not supported": (
        "TextEncodeAceStepAudio EmptyAceStepLatentAudio EmptyLatentAudio VAEEncodeAudio VAEDecodeAudio SaveAudio "
        "SaveAudioMP3 SaveAudioOpus LoadAudio PreviewAudio ConditioningStableAudio RecordAudio TrimAudioDuration "
        "SplitAudioChannels AudioConcat AudioMerge AudioAdjustVolume EmptyAudio AudioEncoderLoader "
        "AudioEncoderEncode"
    ),
    "video models and video files are not supported": (
        "WanCameraEmbedding ContextWindowsManual WanContextWindowsManual EmptyCosmosLatentVideo "
        "CosmosImageToVideoLatent CosmosPredict2ImageToVideoLatent CLIPTextEncodeHunyuanDiT "
        "TextEncodeHunyuanVideo_ImageToVideo EmptyHunyuanLatentVideo HunyuanImageToVideo EmptyHunyuanImageLatent "
        "HunyuanRefinerLatent EmptyLTXVLatentVideo LTXVImgToVideo ModelSamplingLTXV LTXVConditioning LTXVScheduler "
        "LTXVAddGuide LTXVPreprocess LTXVCropGuides EmptyMochiLatentVideo SaveWEBM SaveVideo CreateVideo "
        "GetVideoComponents LoadVideo ImageOnlyCheckpointLoader SVD_img2vid_Conditioning VideoLinearCFGGuidance "
        "VideoTriangleCFGGuidance ImageOnlyCheckpointSave ConditioningSetAreaPercentageVideo WanTrackToVideo "
        "WanImageToVideo WanFunControlToVideo Wan22FunControlToVideo WanFunInpaintToVideo WanFirstLastFrameToVideo "
        "WanVaceToVideo TrimVideoLatent WanCameraImageToVideo WanPhantomSubjectToVideo WanSoundImageToVideo "
        "WanSoundImageToVideoExtend WanHuMoImageToVideo WanAnimateToVideo Wan22ImageToVideoLatent"
    ),
    "3D models are not supported": (
        "EmptyLatentHunyuan3Dv2 Hunyuan3Dv2Conditioning Hunyuan3Dv2ConditioningMultiView VAEDecodeHunyuan3D "
        "VoxelToMeshBasic VoxelToMesh SaveGLB Load3D Load3DAnimation Preview3D Preview3DAnimation "
        "StableZero123_Conditioning StableZero123_Conditioning_Batched SV3D_Conditioning"
    ),
    "it is for a model family other than Stable Diffusion 1, 2 and XL": (
        "EmptyChromaRadianceLatentImage ChromaRadianceOptions ReferenceLatent CLIPTextEncodeFlux FluxGuidance "
        "FluxDisableGuidance FluxKontextImageScale FluxKontextMultiReferenceLatentMethod QuadrupleCLIPLoader "
        "CLIPTextEncodeHiDream LotusConditioning CLIPTextEncodeLumina2 RenormCFG ModelPatchLoader "
        "QwenImageDiffsynthControlnet USOStyleReference OptimalStepsScheduler CLIPTextEncodePixArtAlpha "
        "TextEncodeQwenImageEdit TextEncodeQwenImageEditPlus TripleCLIPLoader EmptySD3LatentImage CLIPTextEncodeSD3 "
        "SkipLayerGuidanceSD3 SkipLayerGuidanceDiT SkipLayerGuidanceDiTSimple StableCascade_EmptyLatentImage "
        "StableCascade_StageB_Conditioning StableCascade_StageC_VAEEncode StableCascade_SuperResolutionControlnet "
        "T5TokenizerOptions ModelSamplingStableCascade ModelSamplingSD3 ModelSamplingAuraFlow ModelSamplingFlux "
        "UNetTemporalAttentionMultiply"
    ),
    "CLIP vision, style models and unCLIP are not supported": (
        "CLIPVisionEncode StyleModelApply unCLIPConditioning StyleModelLoader CLIPVisionLoader unCLIPCheckpointLoader"
    ),
    "GLIGEN is not supported": ("GLIGENLoader GLIGENTextBoxApply"),
    "hypernetworks are not supported": ("HypernetworkLoader"),
    "patches that reach into attention are not supported": (
        "PerturbedAttentionGuidance SelfAttentionGuidance HyperTile TomePatchModel UNetSelfAttentionMultiply "
        "UNetCrossAttentionMultiply CLIPAttentionMultiply"
    ),
    "patches that change how the network itself runs are not supported": (
        "PatchModelAddDownscale EasyCache LazyCache TorchCompileModel ModelComputeDtype"
    ),
    "weights and conditionings that change by hooks are not supported": (
        "CreateHookLora CreateHookLoraModelOnly CreateHookModelAsLora CreateHookModelAsLoraModelOnly "
        "SetHookKeyframes CreateHookKeyframe CreateHookKeyframesInterpolated CreateHookKeyframesFromFloats "
        "CombineHooks2 CombineHooks4 CombineHooks8 ConditioningSetProperties ConditioningSetPropertiesAndCombine "
        "PairConditioningSetProperties PairConditioningSetPropertiesAndCombine PairConditioningSetDefaultCombine "
        "PairConditioningCombine SetClipHooks ConditioningTimestepsRange"
    ),
    "merging and saving models is not supported": (
        "ModelMergeSimple ModelMergeBlocks ModelMergeSubtract ModelMergeAdd CheckpointSave CLIPMergeSimple "
        "CLIPMergeSubtract CLIPMergeAdd CLIPSave VAESave ModelSave ModelMergeSD1 ModelMergeSD2 ModelMergeSDXL "
        "ModelMergeSD3_2B ModelMergeAuraflow ModelMergeFlux1 ModelMergeSD35_Large ModelMergeMochiPreview "
        "ModelMergeLTXV ModelMergeCosmos7B ModelMergeCosmos14B ModelMergeWAN2_1 ModelMergeCosmosPredict2_2B "
        "ModelMergeCosmosPredict2_14B ModelMergeQwenImage LoraSave"
    ),
    "training is not supported": (
        "TrainLoraNode SaveLoRANode LoraModelLoader LoadImageSetFromFolderNode LoadImageTextSetFromFolderNode "
        "LossGraphNode"
    ),
    "PhotoMaker is not supported": ("PhotoMakerLoader PhotoMakerEncode"),
    "the model that upscales latents four times is not supported": ("SD_4XUpscale_Conditioning"),
    "a text of its own for a ControlNet is not supported": ("CLIPTextEncodeControlnet"),
    "latents that grow while they are sampled are not supported; put LatentUpscaleBy between two samplers": (
        "SamplerLCMUpscale"
    ),
    "ComfyUI deprecates it; use PerpNegGuider": ("PerpNeg"),
    "vector images are not supported": ("SaveSVGNode"),
}

UNSUPPORTED: Mapping[str, str] = {
    class_type: reason for reason, class_types in _BY_REASON.items() for class_type in class_types.split()
}
"""Why there is no such class, in words that end a sentence, by its name."""
